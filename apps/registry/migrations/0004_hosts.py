"""The hosts on which the folders of models and built-in corpora were seen."""

from __future__ import annotations

from django.db import migrations, models

import apps.core.hosts


class Migration(migrations.Migration):
    """Where earlier ones were seen is not known: their host stays empty."""

    dependencies = [("registry", "0003_imports")]

    operations = [
        operation
        for name in ("languagemodel", "corpus")
        for operation in (
            migrations.AddField(name, "host", models.CharField(blank=True, default="", max_length=120)),
            migrations.AlterField(
                name,
                "host",
                models.CharField(blank=True, default=apps.core.hosts.this_host, max_length=120),
            ),
        )
    ]
