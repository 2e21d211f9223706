"""App configuration."""

from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """People and sessions."""

    name = "apps.accounts"
    verbose_name = "Accounts"

    def ready(self) -> None:
        """Listen for sign-outs."""
        from apps.accounts import sessions

        sessions.connect()
