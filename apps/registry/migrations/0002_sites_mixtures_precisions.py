"""Recordings of several kinds of sites and of mixed corpora; models with rounded weights."""

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

import apps.core.ids


def to_sites(state, schema_editor):
    Recording = state.get_model("registry", "Recording")
    for row in Recording.objects.only("pk", "site").iterator():
        Recording.objects.filter(pk=row.pk).update(sites=[row.site] if row.site else [])


def to_site(state, schema_editor):
    Recording = state.get_model("registry", "Recording")
    for row in Recording.objects.only("pk", "sites").iterator():
        Recording.objects.filter(pk=row.pk).update(site=(row.sites or [""])[0])


class Migration(migrations.Migration):
    dependencies = [("registry", "0001_initial")]

    operations = [
        migrations.AddField("recording", "sites", models.JSONField(default=list)),
        migrations.AlterField("recording", "site", models.CharField(max_length=20, default="")),
        migrations.RunPython(to_sites, to_site),
        migrations.RemoveField("recording", "site"),
        migrations.AlterField(
            "languagemodel",
            "dtype",
            models.CharField(
                choices=[
                    ("auto", "Auto"),
                    ("float32", "Float32"),
                    ("bfloat16", "Bfloat16"),
                    ("float16", "Float16"),
                    ("int8", "Int8"),
                    ("nf4", "Nf4"),
                ],
                default="auto",
                max_length=10,
            ),
        ),
        migrations.CreateModel(
            "RecordingPart",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=apps.core.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("weight", models.FloatField(validators=[django.core.validators.MinValueValidator(0.0001)])),
                ("position", models.PositiveSmallIntegerField()),
                (
                    "corpus",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="parts",
                        to="registry.corpus",
                    ),
                ),
                (
                    "recording",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="parts",
                        to="registry.recording",
                    ),
                ),
            ],
            options={
                "ordering": ("position",),
                "constraints": [
                    models.UniqueConstraint(fields=("recording", "corpus"), name="recording_part_once"),
                    models.UniqueConstraint(fields=("recording", "position"), name="recording_part_place"),
                    models.CheckConstraint(
                        condition=models.Q(("weight__gt", 0)), name="recording_part_weight"
                    ),
                ],
            },
        ),
    ]
