"""Uploads of a project, uploads a job still reads, and the hosts files are on."""

from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models

import apps.core.hosts


class Migration(migrations.Migration):
    """Where files made before are is not known: their host stays empty."""

    dependencies = [
        ("artifacts", "0003_alter_artifact_kind"),
        ("projects", "0002_invitations_quotas"),
    ]

    operations = [
        migrations.AddField("artifact", "host", models.CharField(blank=True, default="", max_length=120)),
        migrations.AlterField(
            "artifact",
            "host",
            models.CharField(blank=True, default=apps.core.hosts.this_host, max_length=120),
        ),
        migrations.AddField("upload", "host", models.CharField(blank=True, default="", max_length=120)),
        migrations.AlterField(
            "upload",
            "host",
            models.CharField(blank=True, default=apps.core.hosts.this_host, max_length=120),
        ),
        migrations.AddField("upload", "held", models.BooleanField(default=False)),
        migrations.AddField(
            "upload",
            "project",
            models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="uploads",
                to="projects.project",
            ),
        ),
    ]
