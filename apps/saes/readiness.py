"""What is said of SAEs that cannot be used yet."""

from __future__ import annotations

from apps.core.errors import Refused
from apps.saes.models import Sae


def sae_not_ready(sae: Sae) -> Refused:
    """The refusal of work on an SAE that is not there."""
    return Refused(
        "sae_not_ready", f"The SAE “{sae.name}” is {sae.state}.", "Wait until it is ready.", status=409
    )
