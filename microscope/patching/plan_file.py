"""A patch as a file: the plan, and where its autoencoders, adapters and model were when it was made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from microscope.activations.token_filters import settle_on_model
from microscope.errors import MicroscopeError
from microscope.models import LoadedModel
from microscope.models.paths import local_reference
from microscope.params import (
    Edit,
    EditPlan,
    FeatureRef,
    PatchCreateParams,
    Positions,
    edit_kinds,
    validate_plan,
)
from microscope.patching.adapters import LowRankAdapter, load_adapter
from microscope.patching.hooks import check_called
from microscope.sae import SparseAutoencoder, load_sae


class PatchFile(msgspec.Struct, kw_only=True):
    """``saes`` and ``adapters`` are folders by content fingerprint; paths are hints, contents are checked."""

    format: str = "microscope-patch"
    version: int = 1
    plan: EditPlan
    model: str = ""
    saes: dict[str, str] = {}
    adapters: dict[str, str] = {}


def read_patch(path: str | Path) -> PatchFile:
    """Read a patch file; a bare plan is one too.

    Raises:
        MicroscopeError: ``no_patch`` or ``bad_patch``.
    """
    try:
        data = msgspec.json.decode(Path(path).read_bytes())
    except OSError as error:
        raise MicroscopeError("no_patch", f"There is no patch at '{path}'.") from error
    except msgspec.DecodeError as error:
        raise MicroscopeError("bad_patch", f"'{path}' is no JSON: {error}.") from error
    try:
        if isinstance(data, dict) and "plan" not in data:
            return PatchFile(plan=msgspec.convert(data, type=EditPlan))
        return msgspec.convert(data, type=PatchFile)
    except msgspec.ValidationError as error:
        # JSON has no other word for a number that is not finite.
        infinite = "`null`" in str(error) and any(name in str(error) for name in ("strength", "unit_value"))
        hint = "Replace null by the strength that was meant, or make the patch again." if infinite else ""
        raise MicroscopeError("bad_patch", f"'{path}' is no patch: {error}.", hint) from error


def write_patch(patch: PatchFile, path: str | Path) -> None:
    """Write a patch file at once or not at all.

    Raises:
        MicroscopeError: what :func:`validate_plan` raises; what could not be used is not written.
    """
    validate_plan(patch.plan, n_layers=None)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(patch), indent=1))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def create_patch(params: PatchCreateParams) -> PatchFile:
    """Add an edit to a patch file, which is made if there is none.

    Raises:
        MicroscopeError: ``no_such_feature``, ``incomplete_edit``, ``wrong_model``, or what reading and
            :func:`write_patch` raise; a file that was there stays as it was.
    """
    kind = edit_kinds().find(params.kind)
    if kind.refers_to == "adapter":
        raise MicroscopeError(
            "incomplete_edit",
            f"A {kind.title} edit needs an adapter.",
            "Make its patch with `microscope patch import`.",
        )
    sae = load_sae(params.sae_path)
    fingerprint, feature = sae.content_fingerprint(), None
    if kind.refers_to == "feature":
        if params.feature is None:
            raise MicroscopeError("incomplete_edit", f"{params.kind} acts on a feature.", "Add --feature.")
        sae.check_feature(params.feature)
        feature = FeatureRef(sae=fingerprint, index=params.feature)
    named = (str(sae.config.model.get(key) or "") for key in ("fingerprint", "reference"))
    model = params.model or local_reference(*named)
    edit = Edit(
        kind=params.kind,
        site=sae.config.site,
        feature=feature,
        sae="" if feature else fingerprint,
        strength=params.strength,
        unit=params.unit,
        unit_value=params.unit_value,
        positions=Positions(include_sinks=params.include_sinks),
    )
    patch = read_patch(params.out) if Path(params.out).exists() else PatchFile(plan=EditPlan(), model=model)
    if model and patch.model and patch.model != model:
        raise MicroscopeError(
            "wrong_model",
            f"The patch is for {patch.model}, the SAE for {model}.",
            "Write another patch file.",
        )
    patch.plan = msgspec.structs.replace(patch.plan, edits=(*patch.plan.edits, edit))
    patch.saes[fingerprint] = str(Path(params.sae_path).resolve())
    write_patch(patch, params.out)
    return patch


def load_parts(
    patch: PatchFile,
    loaded: LoadedModel,
    *,
    sae_paths: Sequence[str] = (),
    adapter_paths: Sequence[str] = (),
) -> tuple[dict[str, SparseAutoencoder], dict[str, LowRankAdapter]]:
    """The autoencoders and adapters a plan names, checked against it and the model.

    Raises:
        MicroscopeError: ``sae_missing``, ``adapter_missing``, ``wrong_model``, ``wrong_width``, or what
            :func:`validate_plan`, :func:`load_sae`, :func:`load_adapter` and :func:`check_called` raise.
    """
    validate_plan(patch.plan, n_layers=loaded.n_layers)
    saes: dict[str, SparseAutoencoder] = {}
    for path in [*sae_paths, *(p for f, p in patch.saes.items() if f in patch.plan.saes())]:
        if patch.plan.saes() <= saes.keys():
            break
        sae = load_sae(path, device=loaded.device)
        trained_on = sae.config.model.get("fingerprint")
        if trained_on and trained_on != loaded.fingerprint:
            raise MicroscopeError(
                "wrong_model",
                f"The SAE at '{path}' was trained on another model ({sae.config.model.get('reference')}).",
                "Give the model it was trained on.",
            )
        if sae.W_dec.shape[-1] != loaded.d_model:
            raise MicroscopeError(
                "wrong_width",
                f"The SAE at '{path}' writes {sae.W_dec.shape[-1]} numbers, and the model's stream has {loaded.d_model}.",
                "Give the model it was trained on.",
            )
        settle_on_model(sae, loaded)
        saes[sae.content_fingerprint()] = sae
    adapters = {}
    for path in [*adapter_paths, *patch.adapters.values()]:
        adapter = load_adapter(path)
        adapter.check(loaded.model)
        check_called(loaded, adapter.factors)
        adapters[adapter.fingerprint] = adapter.to(loaded.device)
    refuse_missing(patch.plan, saes, adapters)
    return saes, adapters


def refuse_missing(plan: EditPlan, saes: Iterable[str], adapters: Iterable[str]) -> None:
    """Check that what a plan names is at hand, by fingerprint.

    Raises:
        MicroscopeError: ``sae_missing`` or ``adapter_missing``.
    """
    for wanted, found, code, what, option in (
        (plan.saes(), saes, "sae_missing", "an SAE", "--sae-path"),
        (plan.adapters(), adapters, "adapter_missing", "an adapter", "--adapter-path"),
    ):
        missing = sorted(wanted - set(found))
        if missing:
            raise MicroscopeError(
                code,
                f"The patch names {what} ({missing[0][:12]}) that is not at hand.",
                f"Say where it is with {option}.",
            )
