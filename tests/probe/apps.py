"""Registers the probe."""

from django.apps import AppConfig


class ProbeConfig(AppConfig):
    """Only in the test settings."""

    name = "tests.probe"
    label = "probe"

    def ready(self) -> None:
        from apps.jobs.kinds import register
        from tests.probe.kind import PROBE

        register(PROBE)
