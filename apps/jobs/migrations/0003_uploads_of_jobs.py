"""Uploads that jobs have read belong to the projects of these jobs, and are held while the jobs are not over."""

from __future__ import annotations

from typing import Any

from django.db import migrations


def belong(apps: Any, editor: Any) -> None:
    """Tell every upload its project, and whether its job may still read it."""
    job, upload = apps.get_model("jobs", "Job"), apps.get_model("artifacts", "Upload")
    for row in upload.objects.exclude(used_by=None):
        reader = job.objects.filter(pk=row.used_by).first()
        if reader is not None:
            over = reader.state in ("succeeded", "failed", "cancelled")
            upload.objects.filter(pk=row.pk).update(project_id=reader.project_id, held=not over)


class Migration(migrations.Migration):
    """Nothing is lost on the way back."""

    dependencies = [("jobs", "0002_pipelines"), ("artifacts", "0004_hosts_and_held_uploads")]

    operations = [migrations.RunPython(belong, migrations.RunPython.noop)]
