"""Accounts, signing in, and mail."""

from __future__ import annotations

from typing import Any

from workbench.settings.env import email_config, env
from workbench.settings.site import public

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
HEADLESS_ADAPTER = "apps.accounts.adapter.HeadlessAdapter"
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
    "mandatory" if WORKBENCH_SIGNUP == "open" else "none",
    ("none", "optional", "mandatory"),
    "Whether people must follow a link sent to their address before they can sign in. Where everybody may sign up the "
    "default is `mandatory`: otherwise anybody could claim any address, and find out which ones have an account.",
)
WORKBENCH_INVITATION_DAYS = env.integer(
    "WORKBENCH_INVITATION_DAYS", 14, "How long an invitation to a project can be accepted."
)
# The key of failed attempts is the name that was tried together with the address it was tried from (see the adapter).
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
ACCOUNT_DEFAULT_HTTP_PROTOCOL = public.scheme
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
    "WORKBENCH_EMAIL_FROM", f"workbench@{public.hostname or 'localhost'}", "Sender of mails."
)
