"""The model of an SAE is never missing; its recording may be. On its own, because PostgreSQL wants it so."""

from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("saes", "0002_sae_model")]
    operations = [
        migrations.AlterField(
            model_name="sae",
            name="model",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="saes",
                to="registry.languagemodel",
            ),
        ),
        migrations.AlterField(
            model_name="sae",
            name="recording",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="saes",
                to="registry.recording",
            ),
        ),
    ]
