"""Corpora that a job brings in; recordings that were imported and have no corpus."""

import django.db.models.deletion
from django.db import migrations, models

STATES = [("pending", "Pending"), ("ready", "Ready"), ("failed", "Failed")]


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0002_pipelines"),
        ("registry", "0002_sites_mixtures_precisions"),
    ]

    operations = [
        # What is there was checked when it came.
        migrations.AddField(
            "corpus", "state", models.CharField(choices=STATES, default="ready", max_length=8)
        ),
        migrations.AlterField(
            "corpus", "state", models.CharField(choices=STATES, default="pending", max_length=8)
        ),
        migrations.AddField(
            "corpus",
            "job",
            models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="jobs.job",
            ),
        ),
        migrations.RemoveConstraint("corpus", "corpus_has_its_text"),
        migrations.AddConstraint(
            "corpus",
            models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("kind", "upload"),
                        models.Q(
                            models.Q(("state", "ready"), _negated=True),
                            ("artifact__isnull", False),
                            _connector="OR",
                        ),
                    ),
                    models.Q(
                        ("artifact__isnull", True),
                        ("kind__in", ("builtin", "hub_dataset")),
                        models.Q(("reference", ""), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="corpus_has_its_text",
            ),
        ),
        migrations.AddConstraint(
            "corpus",
            models.CheckConstraint(
                condition=models.Q(("state__in", ["pending", "ready", "failed"])), name="corpus_state_known"
            ),
        ),
        migrations.AlterField(
            "recording",
            "corpus",
            models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="recordings",
                to="registry.corpus",
            ),
        ),
    ]
