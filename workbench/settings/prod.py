"""A shared server. Refuses to start without its secret."""

from django.core.exceptions import ImproperlyConfigured

from workbench.settings.base import *  # noqa: F403
from workbench.settings.base import DEBUG, REDIS_URL, SECRET_KEY, SESSION_COOKIE_SECURE

if len(SECRET_KEY) < 40:
    raise ImproperlyConfigured(
        "WORKBENCH_SECRET_KEY (or WORKBENCH_SECRET_KEY_FILE) must be set to at least 40 random characters."
    )
if DEBUG:
    raise ImproperlyConfigured("WORKBENCH_DEBUG shows source code to visitors; it is not for production.")

# Sign-in limits must count across web processes.
CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL}}

if SESSION_COOKIE_SECURE:
    SECURE_HSTS_SECONDS = 31_536_000
