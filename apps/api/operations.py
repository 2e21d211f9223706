"""For the machines that watch: is it alive, is it ready, how is it doing."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import structlog
from django.conf import settings
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Count, DurationField, ExpressionWrapper, F, Sum
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from apps.api.state import look
from apps.core.errors import error_body
from apps.core.metrics import REGISTRY
from apps.jobs.models import Job
from apps.jobs.states import FINAL

log = structlog.get_logger(__name__)


@require_GET
def livez(request: HttpRequest) -> HttpResponse:
    """Whether the process answers at all; restart it if not."""
    return HttpResponse("ok\n", content_type="text/plain")


@require_GET
def readyz(request: HttpRequest) -> JsonResponse:
    """Whether requests should be sent here: the database answers and has the tables this version needs."""
    checks = {"database": True, "migrations": True}
    try:
        checks["migrations"] = not pending_migrations()
    except Exception as error:  # whatever the driver raises: that is the answer
        log.error("not_ready", error=str(error))
        checks = {"database": False, "migrations": False}
    return JsonResponse(
        {"ready": all(checks.values()), **checks}, status=200 if all(checks.values()) else 503
    )


@require_GET
def metrics(request: HttpRequest) -> HttpResponse:
    """Prometheus text, for staff or with ``WORKBENCH_METRICS_TOKEN`` as a bearer token."""
    if not _may_scrape(request):
        body = error_body(
            "permission_denied",
            "Metrics are for staff.",
            hint="Send WORKBENCH_METRICS_TOKEN as a bearer token.",
        )
        return JsonResponse(body, status=403)
    registry = CollectorRegistry()
    registry.register(FromDatabase())
    return HttpResponse(
        generate_latest(registry) + generate_latest(REGISTRY), content_type=CONTENT_TYPE_LATEST
    )


def _may_scrape(request: HttpRequest) -> bool:
    given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    token = settings.WORKBENCH_METRICS_TOKEN
    if token and given and secrets.compare_digest(given.encode(), token.encode()):
        return True
    return bool(request.user.is_authenticated and request.user.is_active and request.user.is_staff)


def pending_migrations() -> list[str]:
    """Migrations of the code that the database does not have."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, _ in plan]


class FromDatabase(Collector):
    """Figures that are the same whichever web process is asked."""

    def collect(self) -> Iterator[Metric]:
        """Read them."""
        now = look()
        jobs = GaugeMetricFamily("workbench_jobs", "Jobs by state.", labels=["state"])
        for state, count in now.jobs.items():
            jobs.add_metric([state], count)
        yield jobs
        residents = GaugeMetricFamily("workbench_residents", "Resident models by state.", labels=["state"])
        for state, count in now.residents.items():
            residents.add_metric([state], count)
        yield residents
        for name, text, value in (
            (
                "workbench_queue_oldest_seconds",
                "How long the longest waiting job has been queued.",
                now.oldest_queued,
            ),
            ("workbench_workers", "Compute workers heard of lately.", now.workers),
            ("workbench_workers_silent", "Compute workers that fell silent.", now.silent_workers),
            ("workbench_resident_memory_bytes", "Memory of all resident models.", now.resident_bytes),
            ("workbench_deliveries_pending", "Webhooks and e-mails on their way.", now.deliveries),
            ("workbench_disk_free_bytes", "Free space where the data folder is.", now.disk.free),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        yield self._durations()

    @staticmethod
    def _durations() -> Metric:
        family = SummaryMetricFamily(
            "workbench_job_seconds", "Time from start to end of finished jobs.", labels=["kind", "state"]
        )
        took = ExpressionWrapper(F("finished_at") - F("started_at"), output_field=DurationField())
        rows = Job.objects.filter(state__in=FINAL, started_at__isnull=False, finished_at__isnull=False)
        sums = rows.order_by().values_list("kind", "state").annotate(n=Count("*"), total=Sum(took))
        for kind, state, count, total in sums:
            family.add_metric([kind, state], count_value=count, sum_value=total.total_seconds())
        return family
