"""Live questions and answers as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.core.structs import StructField
from apps.core.views import VisibleField
from apps.patches.models import Patch
from apps.registry.models import LanguageModel
from microscope.params import EditPlan
from microscope.protocol import MAX_PROMPT_CHARACTERS, PromptToken, Receipt, Timings, TokenShift


class InferenceRequestSerializer(serializers.Serializer[Any]):
    """A question. Without ``patches`` and ``plan``, all patches of the model that are switched on apply."""

    model = VisibleField(LanguageModel)
    prompt = serializers.CharField(max_length=MAX_PROMPT_CHARACTERS, trim_whitespace=False)
    patches = serializers.ListField(child=VisibleField(Patch), required=False, max_length=64)
    plan = StructField(EditPlan, required=False)
    top = serializers.IntegerField(min_value=1, max_value=200, default=10)


class AppliedPatchSerializer(serializers.Serializer[Any]):
    """A patch that was asked for, and whether it was on."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    version = serializers.IntegerField()
    applied = serializers.BooleanField()


class InferenceSerializer(serializers.Serializer[Any]):
    """The next-token distribution, base beside patched, with the receipt of what was applied."""

    prompt = StructField(list[PromptToken])
    tokens = StructField(list[TokenShift])
    kl = serializers.FloatField()
    entropy_base = serializers.FloatField()
    entropy_patched = serializers.FloatField()
    receipt = StructField(Receipt)
    timings = StructField(Timings)
    patches = AppliedPatchSerializer(many=True)


class AttachedSerializer(serializers.Serializer[Any]):
    """An SAE the resident worker has loaded, or is loading."""

    state = serializers.ChoiceField(choices=("attached", "attaching"))
    sae = serializers.CharField(help_text="Fingerprint.")
    site = serializers.CharField()
    n_latents = serializers.IntegerField()
