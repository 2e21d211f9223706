"""SAEs know their model, filled in from their recordings, which become optional."""

from __future__ import annotations

from typing import Any

import django.db.models.deletion
from django.db import migrations, models


def fill(apps: Any, editor: Any) -> None:
    """The model of an SAE is that of its recording."""
    recordings = apps.get_model("registry", "Recording").objects
    of_recording = recordings.filter(pk=models.OuterRef("recording_id")).values("model_id")[:1]
    apps.get_model("saes", "Sae").objects.update(model_id=models.Subquery(of_recording))


class Migration(migrations.Migration):
    dependencies = [("registry", "0001_initial"), ("saes", "0001_initial")]
    operations = [
        migrations.AddField(
            model_name="sae",
            name="model",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="saes",
                to="registry.languagemodel",
            ),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop, elidable=True),
    ]
