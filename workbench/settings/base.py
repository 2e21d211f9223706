"""Settings shared by every environment. Every variable is read through ``env``, which documents it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from workbench.logs import logging_config
from workbench.settings.env import Env, artifact_storage, broker_url, database_config, email_config

env = Env()

BASE_DIR = Path(__file__).resolve().parents[2]

# --- where things are ---------------------------------------------------------------------------------

WORKBENCH_DATA_DIR = env.path(
    "WORKBENCH_DATA_DIR",
    BASE_DIR / "var",
    "Folder of the database, artifacts, job folders, models, sockets and logs.",
    shown="./var",
)
WORKBENCH_ARTIFACT_DIR = WORKBENCH_DATA_DIR / "artifacts"
WORKBENCH_JOB_DIR = WORKBENCH_DATA_DIR / "jobs"
WORKBENCH_RUN_DIR = WORKBENCH_DATA_DIR / "run"
WORKBENCH_LOG_DIR = WORKBENCH_DATA_DIR / "logs"
ACTIVATION_DATA_DIR = env.path(
    "ACTIVATION_DATA_DIR",
    WORKBENCH_ARTIFACT_DIR / "recording",
    "Where recordings are kept; they are the large files.",
    shown="artifacts/recording in the data folder",
)
SAE_CACHE_DIR = env.path(
    "SAE_CACHE_DIR",
    WORKBENCH_ARTIFACT_DIR / "sae",
    "Where trained SAEs are kept.",
    shown="artifacts/sae in the data folder",
)
WORKBENCH_MODEL_DIRS = env.paths(
    "WORKBENCH_MODEL_DIRS",
    (WORKBENCH_DATA_DIR / "models",),
    "Folders whose models everybody may add by path; other server paths are for staff.",
    shown="models in the data folder",
)
WORKBENCH_CORPUS_DIRS = env.paths(
    "WORKBENCH_CORPUS_DIRS",
    (WORKBENCH_DATA_DIR / "corpora",),
    "Folders whose subfolders and files are offered as built-in corpora.",
    shown="corpora in the data folder",
)
WORKBENCH_FRONTEND_DIR = env.path(
    "WORKBENCH_FRONTEND_DIR",
    BASE_DIR / "frontend" / "dist",
    "The built browser application.",
    shown="frontend/dist",
)

# --- the site -----------------------------------------------------------------------------------------

DEBUG = env.flag("WORKBENCH_DEBUG", False, "Show tracebacks in the browser; never on a shared machine.")
SECRET_KEY = env.secret(
    "WORKBENCH_SECRET_KEY",
    "",
    "Signs sessions. Required in production; generated once into the data folder in development.",
)
WORKBENCH_PUBLIC_URL = env.text(
    "WORKBENCH_PUBLIC_URL",
    "http://127.0.0.1:8000",
    "Address people type; allowed hosts, CSRF and WebSocket origins and cookie flags follow from it.",
).rstrip("/")
_public = urlsplit(WORKBENCH_PUBLIC_URL)
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
ALLOWED_HOSTS: list[str] = sorted(
    {
        _public.hostname or "localhost",
        *_LOOPBACK,
        *env.words("WORKBENCH_ALLOWED_HOSTS", (), "More host names the site answers to."),
    }
)
_port = f":{_public.port}" if _public.port else ""
CSRF_TRUSTED_ORIGINS = sorted(
    {f"{_public.scheme}://{_public.netloc}", *(f"{_public.scheme}://{host}{_port}" for host in _LOOPBACK)}
)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _public.scheme == "https"
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
_behind_proxy = env.flag(
    "WORKBENCH_BEHIND_PROXY",
    False,
    "There is one proxy in front: its X-Forwarded-Proto and the last address in X-Forwarded-For are believed.",
)
if _behind_proxy:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
# Whose address counts where strangers are limited: without a proxy anybody could write the header.
ALLAUTH_TRUSTED_PROXY_COUNT = int(_behind_proxy)
SECURE_SSL_REDIRECT = env.flag("WORKBENCH_SSL_REDIRECT", False, "Answer http with a redirect to https.")
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

INSTALLED_APPS = [
    "apps.core",
    "apps.audit",
    "apps.accounts",
    "apps.projects",
    "apps.artifacts",
    "apps.notifications",
    "apps.jobs",
    "apps.registry",
    "apps.saes",
    "apps.features",
    "apps.patches",
    "apps.live",
    "apps.bundles",
    "apps.api",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "allauth.headless",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "drf_standardized_errors",
    "channels",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "workbench.middleware.StaticFiles",
    "workbench.middleware.RequestLog",
    "workbench.middleware.ContentSecurityPolicy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "workbench.urls"
ASGI_APPLICATION = "workbench.asgi.application"
APPEND_SLASH = True
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "workbench" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Vite builds with base "/static/", so its files are ordinary static files; index.html is served by workbench.spa.
STATIC_URL = "/static/"
STATICFILES_DIRS = [WORKBENCH_FRONTEND_DIR] if WORKBENCH_FRONTEND_DIR.is_dir() else []
# Served from where they are installed: a few hundred small files, nothing to collect at deployment.
WHITENOISE_USE_FINDERS = True
WHITENOISE_ALLOW_ALL_ORIGINS = False
WHITENOISE_IMMUTABLE_FILE_TEST = r"^/static/assets/.+-[A-Za-z0-9_-]{8,}\.\w+$"

# --- storage and messaging ----------------------------------------------------------------------------

DATABASES = {
    "default": database_config(
        env.text(
            "DATABASE_URL",
            f"sqlite:///{WORKBENCH_DATA_DIR / 'db.sqlite3'}",
            "`sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/NAME`.",
            shown="db.sqlite3 in the data folder",
        )
    )
}
STORAGES: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    **artifact_storage(
        env.text(
            "WORKBENCH_ARTIFACT_STORE",
            "",
            "Empty keeps files in the data folder; `s3://BUCKET/PREFIX` keeps them in S3 or a relative of it "
            "(keys in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`).",
        ),
        env.text("AWS_ENDPOINT_URL", "", "Address of the S3 service when it is not Amazon's."),
    ),
}
REDIS_URL = env.text(
    "REDIS_URL",
    "redis://127.0.0.1:6379/0",
    "Valkey or Redis: wake-ups and live updates only; it may be wiped at any time. `unix://PATH` works too.",
)
CHANNEL_LAYERS: dict[str, dict[str, Any]] = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {
            # A server that stops answering must not hold up a job or a request that publishes.
            "hosts": [{"address": REDIS_URL, "socket_connect_timeout": 2, "socket_timeout": 5}],
            "prefix": "workbench",
        },
    }
}
CELERY = {
    "broker_url": broker_url(REDIS_URL),
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_transport_options": {
        "socket_connect_timeout": 2,
        "socket_timeout": 5,
        "health_check_interval": 15,
    },
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_ignore_result": True,
    "task_acks_late": False,
    "task_default_queue": "jobs",
    "worker_prefetch_multiplier": 1,
    # One job at a time, supervised from the worker's own process: its child does the work, so a pool
    # process would only stand between them and outlive a worker that is killed.
    "worker_pool": "solo",
    "worker_concurrency": 1,
    "worker_hijack_root_logger": False,
    "worker_send_task_events": False,
    "worker_enable_remote_control": False,
    "imports": ["worker.tasks"],
    "timezone": "UTC",
}

# --- people -------------------------------------------------------------------------------------------

AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
ACCOUNT_ADAPTER = "apps.accounts.adapter.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["username*", "email*", "password1*"]
WORKBENCH_SIGNUP = env.choice(
    "WORKBENCH_SIGNUP",
    "invitation",
    ("open", "invitation", "closed"),
    "Who may make an account: everybody, people with an invitation to a project, or nobody but staff.",
)
ACCOUNT_EMAIL_VERIFICATION = env.choice(
    "WORKBENCH_EMAIL_VERIFICATION",
    "none",
    ("none", "optional", "mandatory"),
    "Whether people must follow a link sent to their address before they can sign in.",
)
WORKBENCH_INVITATION_DAYS = env.integer(
    "WORKBENCH_INVITATION_DAYS", 14, "How long an invitation to a project can be accepted."
)
ACCOUNT_RATE_LIMITS = {"login": "60/m/ip", "login_failed": "10/m/ip,5/5m/key"}
HEADLESS_ONLY = True
HEADLESS_CLIENTS = ("browser",)
HEADLESS_FRONTEND_URLS = {
    "account_confirm_email": "/verify-email/{key}",
    "account_reset_password": "/password/reset",
    "account_reset_password_from_key": "/password/reset/{key}",
    "account_signup": "/sign-up",
    "socialaccount_login_error": "/login",
}
ACCOUNT_EMAIL_SUBJECT_PREFIX = ""
ACCOUNT_DEFAULT_HTTP_PROTOCOL = _public.scheme
ACCOUNT_EMAIL_NOTIFICATIONS = True
ACCOUNT_LOGOUT_ON_PASSWORD_CHANGE = False

# Two-factor sign-in: codes of an authenticator application, and recovery codes. Their secrets are stored encrypted.
MFA_ADAPTER = "apps.accounts.second_factor.MFAAdapter"
MFA_SUPPORTED_TYPES = ["totp", "recovery_codes"]
MFA_TOTP_ISSUER = "InterpretabilityWorkbench"
MFA_TOTP_TOLERANCE = 1
MFA_ALLOW_UNVERIFIED_EMAIL = True

# Sign-in through an OpenID Connect provider.
WORKBENCH_OIDC_SIGNUP = env.flag(
    "WORKBENCH_OIDC_SIGNUP", True, "People whom the OpenID Connect provider sends get an account."
)
_oidc_server = env.text(
    "WORKBENCH_OIDC_SERVER_URL", "", "Issuer of the OpenID Connect provider; without it there is none."
)
_oidc_name = env.text("WORKBENCH_OIDC_NAME", "Single sign-on", "What its button says.")
_oidc_client = env.text("WORKBENCH_OIDC_CLIENT_ID", "", "Client id there.")
_oidc_secret = env.secret("WORKBENCH_OIDC_CLIENT_SECRET", "", "Client secret there.")
_oidc_trusted = env.flag(
    "WORKBENCH_OIDC_TRUST_EMAIL",
    False,
    "Believe its e-mail addresses: people then get into the account here that has the same address.",
)
SOCIALACCOUNT_ADAPTER = "apps.accounts.adapter.SocialAccountAdapter"
SOCIALACCOUNT_EMAIL_VERIFICATION = "none"
SOCIALACCOUNT_STORE_TOKENS = False
SOCIALACCOUNT_OPENID_CONNECT_URL_PREFIX = "oidc"
SOCIALACCOUNT_PROVIDERS: dict[str, Any] = {
    "openid_connect": {
        "OAUTH_PKCE_ENABLED": True,
        "APPS": [
            {
                "provider_id": "sso",
                "name": _oidc_name,
                "client_id": _oidc_client,
                "secret": _oidc_secret,
                "settings": {
                    "server_url": _oidc_server,
                    "verified_email": _oidc_trusted,
                    "email_authentication": _oidc_trusted,
                    "email_authentication_auto_connect": _oidc_trusted,
                },
            }
        ]
        if _oidc_server
        else [],
    }
}

globals().update(
    email_config(
        env.text(
            "WORKBENCH_EMAIL_URL",
            "console://",
            "How mail is sent: `console://`, `file:///FOLDER`, `smtp://USER:PASSWORD@HOST:587` or `smtps://…`.",
        )
    )
)
DEFAULT_FROM_EMAIL = SERVER_EMAIL = env.text(
    "WORKBENCH_EMAIL_FROM", f"workbench@{_public.hostname or 'localhost'}", "Sender of mails."
)

# --- quotas; 0 means no limit, staff change them for single projects and people ------------------------

WORKBENCH_QUOTAS: dict[str, dict[str, int]] = {
    "project": {
        "storage_bytes": env.integer("WORKBENCH_PROJECT_STORAGE_GB", 500, "Stored files per project.")
        * 2**30,
        "queued_jobs": env.integer("WORKBENCH_PROJECT_QUEUED_JOBS", 200, "Waiting jobs per project."),
        "running_jobs": env.integer("WORKBENCH_PROJECT_RUNNING_JOBS", 0, "Jobs a project has done at once."),
        "compute_seconds": 3600
        * env.integer("WORKBENCH_PROJECT_COMPUTE_HOURS", 0, "Hours of jobs per project in 30 days."),
        "live_sessions": env.integer("WORKBENCH_PROJECT_LIVE_SESSIONS", 200, "Live sessions per project."),
    },
    "user": {
        "storage_bytes": env.integer("WORKBENCH_USER_STORAGE_GB", 500, "Files stored by one person's jobs.")
        * 2**30,
        "queued_jobs": env.integer("WORKBENCH_USER_QUEUED_JOBS", 100, "Waiting jobs per person."),
        "running_jobs": env.integer("WORKBENCH_USER_RUNNING_JOBS", 0, "Jobs one person has done at once."),
        "compute_seconds": 3600
        * env.integer("WORKBENCH_USER_COMPUTE_HOURS", 0, "Hours of jobs per person in 30 days."),
        "live_sessions": env.integer("WORKBENCH_USER_LIVE_SESSIONS", 50, "Live sessions per person."),
    },
}

WORKBENCH_RATE_LIMIT = env.text(
    "WORKBENCH_RATE_LIMIT",
    "1200/minute",
    "Requests per person, or per API token, or per address of people who are not signed in.",
)

# --- the API ------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "apps.accounts.authentication.TokenAuthentication",
        "apps.core.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": [
        "rest_framework.permissions.IsAuthenticated",
        "apps.accounts.permissions.TokenScope",
    ],
    "DEFAULT_THROTTLE_CLASSES": ["apps.core.throttling.RateThrottle"],
    "DEFAULT_RENDERER_CLASSES": ["apps.core.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_PAGINATION_CLASS": "apps.core.pagination.Pages",
    "DEFAULT_SCHEMA_CLASS": "apps.core.schema.AutoSchema",
    "EXCEPTION_HANDLER": "drf_standardized_errors.handler.exception_handler",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
    "NUM_PROXIES": int(_behind_proxy),
}
DRF_STANDARDIZED_ERRORS = {
    "EXCEPTION_HANDLER_CLASS": "apps.core.handlers.ExceptionHandler",
    "EXCEPTION_FORMATTER_CLASS": "apps.core.handlers.ExceptionFormatter",
    "ENABLE_IN_DEBUG_FOR_UNHANDLED_EXCEPTIONS": True,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "InterpretabilityWorkbench",
    "DESCRIPTION": "Record activations, train and evaluate sparse autoencoders, browse features, patch a live model.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "COMPONENT_SPLIT_PATCH": True,
    "SCHEMA_PATH_PREFIX": r"/api/v1",
    # Choices stay where they are: components of their own would be named after whichever field came first.
    "POSTPROCESSING_HOOKS": [],
}

# --- jobs ---------------------------------------------------------------------------------------------

WORKBENCH_ENGINE_PYTHON = env.text(
    "WORKBENCH_ENGINE_PYTHON",
    sys.executable,
    "Python that has torch and `microscope`: it runs jobs and resident models.",
    shown="the same Python",
)
WORKBENCH_LEASE_SECONDS = env.seconds(
    "WORKBENCH_LEASE_SECONDS", 30, "A job whose worker has been silent for so long is given to another."
)
WORKBENCH_HEARTBEAT_SECONDS = env.seconds(
    "WORKBENCH_HEARTBEAT_SECONDS", 5, "How often a worker renews its lease."
)
WORKBENCH_REAP_SECONDS = env.seconds(
    "WORKBENCH_REAP_SECONDS", 10, "How often workers look for lost jobs and forgotten wake-ups."
)
WORKBENCH_WAKEUP_SECONDS = env.seconds(
    "WORKBENCH_WAKEUP_SECONDS",
    15,
    "A queued job that an idle worker has not taken for so long is announced again.",
)
WORKBENCH_CANCEL_GRACE_SECONDS = env.seconds(
    "WORKBENCH_CANCEL_GRACE_SECONDS",
    5,
    "A cancelled job gets so long to stop by itself, then as long after SIGTERM, then SIGKILL.",
)
WORKBENCH_MAX_ATTEMPTS = env.integer(
    "WORKBENCH_MAX_ATTEMPTS", 3, "How often a job is started before a lost worker counts as failure."
)
WORKBENCH_UPLOAD_MAX_MB = env.integer("WORKBENCH_UPLOAD_MAX_MB", 64, "Largest corpus that can be uploaded.")
WORKBENCH_UPLOAD_MAX_GB = env.integer(
    "WORKBENCH_UPLOAD_MAX_GB", 64, "Largest sum of one person's uploads that no job has taken over yet."
)
WORKBENCH_UPLOAD_CHUNK_MB = env.integer(
    "WORKBENCH_UPLOAD_CHUNK_MB", 16, "Largest piece of an upload in one request; bounds the server's memory."
)
# No request needs more: pieces of uploads, or a whole corpus with what a form puts around it.
WORKBENCH_BODY_BYTES = (max(WORKBENCH_UPLOAD_CHUNK_MB, WORKBENCH_UPLOAD_MAX_MB) + 1) * 2**20
WORKBENCH_UPLOAD_SECONDS = env.seconds(
    "WORKBENCH_UPLOAD_SECONDS", 48 * 3600, "An upload nobody has continued for so long is removed."
)
WORKBENCH_RESIDENT_START_SECONDS = env.seconds(
    "WORKBENCH_RESIDENT_START_SECONDS", 900, "A model that has not loaded after so long counts as failed."
)
WORKBENCH_RESIDENT_IDLE_MINUTES = env.integer(
    "WORKBENCH_RESIDENT_IDLE_MINUTES",
    0,
    "A model that nobody has asked anything for so long is taken out of memory; 0 keeps it.",
)
WORKBENCH_RESIDENT_CACHE_MB = env.integer(
    "WORKBENCH_RESIDENT_CACHE_MB", 2048, "What the live sessions of one model may keep in memory, MiB."
)
WORKBENCH_RESIDENT_SAE_MB = env.integer(
    "WORKBENCH_RESIDENT_SAE_MB",
    4096,
    "What the SAEs and adapters attached to one model may take in memory, MiB.",
)
WORKBENCH_RESIDENT_HOST = env.text(
    "WORKBENCH_RESIDENT_HOST",
    "",
    "Address of this model host as other machines reach it. Models then listen there over TCP, and both "
    "ends need WORKBENCH_RESIDENT_TOKEN; without it they listen on sockets of this machine alone.",
)
WORKBENCH_METRICS_TOKEN = env.secret(
    "WORKBENCH_METRICS_TOKEN",
    "",
    "Bearer token that may read /metrics besides staff; without it only staff may.",
)
WORKBENCH_WEBHOOK_PRIVATE = env.flag(
    "WORKBENCH_WEBHOOK_PRIVATE",
    False,
    "Let webhooks call private, loopback and link-local addresses; whoever owns a project can then reach them.",
)
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 * 2**20
FILE_UPLOAD_MAX_MEMORY_SIZE = 2**20

# Read by the engine; named here so that the reference lists them.
HF_TOKEN = env.secret("HF_TOKEN", "", "Hugging Face token for gated models; passed on to jobs, never stored.")
CUDA_VISIBLE_DEVICES = env.text("CUDA_VISIBLE_DEVICES", "", "GPUs that jobs and models may use.")

# --- logs ---------------------------------------------------------------------------------------------

LOGGING = logging_config(
    level=env.text("WORKBENCH_LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR."),
    json=env.text("WORKBENCH_LOG_FORMAT", "console", "`console` for people, `json` for machines.") == "json",
)
