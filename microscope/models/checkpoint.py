"""What a model's weight files hold, read from their headers, against what its configuration asks for.

``transformers`` fills what a checkpoint lacks with random numbers and passes over what it does not know.
Here every weight of the model is found under a name that is understood, with its shape, or the model is
refused by the name of what is wrong. Wrappers leave their own parts in the names (``torch.compile`` an
``_orig_mod``, DDP a ``module``, PEFT a ``base_model.model``); those are taken off when what remains fits
one to one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models.configuration import pointer_refused
from microscope.models.families import Family
from microscope.quarantine.content import is_pointer
from microscope.quarantine.tensors import check_safetensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_INDEX_LIMIT = 64 * 2**20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What wrappers put into names, in any position.
_WRAPPERS = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|module)\."
)
# Buffers that older versions stored and that are computed today, and a value head for training by rewards.
_HARMLESS = re.compile(
    r"rotary_emb\.inv_freq$|(^|\.)(attn|attention)\.(bias|masked_bias)$|(^|\.)position_ids$|^v_head\."
)
_SHOWN = 3


@dataclass(frozen=True)
class Stored:
    """Tensors of safetensors files: shape and file by name."""

    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, Path]

    def read(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Tensors under other names (``stored name → name``); their values stay in the files until used."""
        found: dict[str, Tensor] = {}
        for file in dict.fromkeys(self.files.values()):
            with safe_open(file, framework="pt") as opened:
                for stored, name in names.items():
                    if self.files[stored] == file:
                        found[name] = opened.get_tensor(stored)
        return found


def weight_files(folder: Path, reference: str) -> list[Path]:
    """The safetensors files of a model folder, all of them there.

    Raises:
        MicroscopeError: ``bad_model_file`` for weights that are missing, incomplete, pointers or pickles, and
            for a folder that holds an adapter beside the model.
    """
    if (folder / "adapter_config.json").is_file():
        raise _bad(
            reference,
            "it holds a model and an adapter (adapter_config.json), and whether both are meant is not said",
            "Move the adapter to a folder of its own and bring it in with `microscope patch import`.",
        )
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        return _shards(index, reference)
    if any(path for pattern in _PICKLES for path in folder.glob(pattern)):
        raise _bad(
            reference,
            f"its weights are pickles, which can run code, and there is no {WEIGHTS}",
            "Save the model again with transformers, which writes safetensors.",
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise _bad(
            reference,
            f"there is no {WEIGHTS} and no {INDEX}, only {', '.join(others[:_SHOWN])}",
            "Add the index that belongs to these files, or download the model again.",
        )
    raise _bad(reference, f"there are no weights in it: no {WEIGHTS}", "Download the model again, whole.")


def shard_names(index: Path, reference: str) -> list[str]:
    """Names of the files that an index lists, all in its own folder.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    if index.stat().st_size > _INDEX_LIMIT:
        raise _bad(reference, f"{INDEX} has more than {_INDEX_LIMIT // 2**20} MB")
    if is_pointer(index):
        raise pointer_refused(INDEX, reference)
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(listed.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(reference, f"{INDEX} is no index of weights") from error
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise _bad(reference, f"{INDEX} names files outside its folder, or none")
    return names


def _shards(index: Path, reference: str) -> list[Path]:
    names = shard_names(index, reference)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise _bad(
            reference,
            f"{len(missing)} of {len(names)} files that {INDEX} names are missing: {_some(missing)}",
            "Download the missing files.",
        )
    return [index.parent / name for name in names]


def read_headers(files: Sequence[Path], reference: str) -> Stored:
    """Names, shapes and files of all tensors, from checked headers.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    files_of: dict[str, Path] = {}
    for file in files:
        if is_pointer(file):
            raise pointer_refused(file.name, reference)
        try:
            header = check_safetensors(file)
        except MicroscopeError as error:
            raise MicroscopeError(
                "bad_model_file",
                f"The weights of {reference} cannot be read: {error.message}",
                "Download or save the model again.",
            ) from error
        for name, (dtype, shape) in header.items():
            if not dtype.startswith(("F", "BF")) and not _HARMLESS.search(name):
                raise _bad(
                    reference,
                    f"'{name}' holds {dtype}, not floating-point numbers",
                    "The weights are quantised, or converted wrongly: take the model they were made from.",
                )
            if name in shapes:
                raise _bad(reference, f"'{name}' is in {files_of[name].name} and in {file.name}")
            shapes[name], files_of[name] = shape, file
    _check_shards_complete(shapes, files, reference)
    return Stored(shapes, files_of)


def _check_shards_complete(shapes: Mapping[str, Any], files: Sequence[Path], reference: str) -> None:
    """Whether what an index promises is in the files it names."""
    index = files[0].parent / INDEX
    if files[0].name == WEIGHTS or not index.is_file():
        return
    promised = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    missing = sorted(set(promised) - set(shapes))
    if missing:
        raise _bad(
            reference,
            f"{len(missing)} weights that {INDEX} names are in no file: {_some(missing)}",
            "The files and the index are of different models; download both again.",
        )


def check_blocks(stored: Stored, config: Any, family: Family, reference: str) -> None:
    """Whether there are weights for as many blocks as the configuration asks for, before any is built.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    stem = family.blocks.rsplit(".", 1)[-1]
    pattern = re.compile(rf"(?:^|\.){stem}\.(\d+)\.")
    found = {int(match[1]) for name in stored.shapes if (match := pattern.search(name))}
    wanted = int(config.num_hidden_layers)
    if len(found) != wanted:
        raise _bad(
            reference,
            f"the configuration asks for {wanted} blocks, and the files have weights of {len(found)}",
            "Take the configuration that belongs to the weights.",
        )


def match_names(stored: Stored, skeleton: Any, reference: str) -> dict[str, str] | None:
    """Find the names under which ``transformers`` knows the stored weights, and check their shapes.

    What is missing or unknown after that is for :func:`check_loaded`, since ``transformers`` renames
    weights of older versions on its own.

    Args:
        stored: what the files hold.
        skeleton: the model without storage.
        reference: the model as it was named.

    Returns:
        A new name for each stored one where wrappers renamed them; None when they are to be read as they are.

    Raises:
        MicroscopeError: ``bad_model_file`` naming weights of other shapes, or two that are one.
    """
    wanted = {name: tuple(weight.shape) for name, weight in skeleton.state_dict().items()}
    base = f"{skeleton.base_model_prefix}."

    def known(name: str) -> str | None:
        return next((o for o in (name, base + name, name.removeprefix(base)) if o in wanted), None)

    ways = _unwrapped(stored.shapes)
    # Of equally good ways the first: the one that changes least.
    way = max(ways, key=lambda change: sum(known(change(name)) is not None for name in stored.shapes))
    found = {name: own for name in stored.shapes if (own := known(way(name))) is not None}
    _check_one_to_one(found, reference)
    _check_shapes(stored, found, wanted, reference)
    return None if way is ways[0] else {name: way(name) for name in stored.shapes}


def _in_body(name: str, family: Family, base: str) -> bool:
    stem = family.blocks.removeprefix(base).rsplit(".", 1)[0]
    return name.removeprefix(base).startswith((f"{stem}.", "embeddings."))


def _unwrapped(names: Iterable[str]) -> list[Callable[[str], str]]:
    """Ways to take wrappers' parts off names, the least change first."""

    def without_wrappers(name: str) -> str:
        return _WRAPPERS.sub("", name)

    common: list[str] | None = None
    for name in map(without_wrappers, names):
        parts = name.split(".")[:-1]
        pairs = zip(parts, parts if common is None else common, strict=False)
        common = [part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    ways: list[Callable[[str], str]] = [lambda name: name, without_wrappers]
    for length in range(1, len(common or ()) + 1):
        ways.append(partial(_without_prefix, ".".join((common or [])[:length]) + "."))
    return ways


def _without_prefix(prefix: str, name: str) -> str:
    return _WRAPPERS.sub("", name).removeprefix(prefix)


def _check_one_to_one(names: Mapping[str, str], reference: str) -> None:
    seen: dict[str, str] = {}
    for stored, own in names.items():
        if own in seen:
            raise _bad(reference, f"'{seen[own]}' and '{stored}' are the same weight of the model")
        seen[own] = stored


def _check_shapes(
    stored: Stored, names: Mapping[str, str], wanted: Mapping[str, tuple[int, ...]], reference: str
) -> None:
    for name, own in names.items():
        if stored.shapes[name] != wanted[own]:
            raise _bad(
                reference,
                f"'{name}' has the shape {_shape(stored.shapes[name])}, and the configuration asks for "
                f"{_shape(wanted[own])}",
                "Take the configuration that belongs to the weights.",
            )


def _refuse_missing(
    missing: set[str], unexpected: list[str], model: Any, family: Family, reference: str
) -> None:
    """Refuse a model some of whose weights are in no file. The head of an encoder is never read and may be.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    missing = missing - _head_of(model, family)
    if not missing:
        return
    head = model.get_output_embeddings()
    alone = {name for name, weight in model.named_parameters() if head is not None and weight is head.weight}
    hint = "Nothing is made up for them: download or save the model again, whole."
    if missing <= alone:
        hint = "If the embedding is also the head, set tie_word_embeddings to true in config.json."
    found = f"; unknown to it are {_some(unexpected)}" if unexpected else ""
    raise _bad(reference, f"{len(missing)} of its weights are in no file: {_some(missing)}{found}", hint)


def _head_of(model: Any, family: Family) -> set[str]:
    """Weights of an encoder's prediction head, which is never read; none of a decoder's."""
    if family.causal:
        return set()
    return {name for name in model.state_dict() if not name.startswith(f"{model.base_model_prefix}.")}


def check_loaded(model: Any, family: Family, info: Mapping[str, Any], reference: str) -> None:
    """What ``transformers`` reports of a load, and what it never looks at: ties, and numbers that are none.

    The head of an encoder that came without one becomes zeros, so that the model is the same on every load.

    Args:
        model: the loaded model.
        family: its family.
        info: ``missing_keys``, ``unexpected_keys``, ``mismatched_keys`` and ``error_msgs``.
        reference: the model as it was named.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    if info.get("error_msgs"):
        raise _bad(reference, str(info["error_msgs"][0]).strip().split("\n", 1)[0])
    missing = {str(name) for name in info.get("missing_keys", ())}
    unexpected = [name for name in info.get("unexpected_keys", ()) if not _HARMLESS.search(name)]
    base = f"{model.base_model_prefix}."
    unexpected = [name for name in unexpected if family.causal or _in_body(name, family, base)]
    _refuse_missing(missing, unexpected, model, family, reference)
    _zero(model, missing)
    if unexpected:
        raise _unknown(unexpected, reference)
    if info.get("mismatched_keys"):
        name, *_ = next(iter(info["mismatched_keys"]))
        raise _bad(reference, f"'{name}' has another shape than the configuration asks for")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _bad(reference, "it comes with an adapter, which has been put into it")
    _check_ties(model, reference)
    _check_finite(model, reference)


@torch.no_grad()
def _zero(model: Any, names: set[str]) -> None:
    for name, weight in model.state_dict(keep_vars=True).items():
        if name in names:
            weight.zero_()


def _check_ties(model: Any, reference: str) -> None:
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        raise _bad(
            reference,
            "its configuration says that the embedding is also the head (tie_word_embeddings), and its files "
            "hold two that differ",
            "Set tie_word_embeddings to false in config.json if the head in the files is meant.",
        )


@torch.no_grad()
def _check_finite(model: Any, reference: str) -> None:
    for name, weight in model.named_parameters():
        if not weight.is_floating_point() or weight.device.type == "meta" or not weight.numel():
            continue
        low, high = torch.aminmax(weight.detach())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise _bad(
                reference,
                f"'{name}' contains NaN or infinity in {str(weight.dtype).removeprefix('torch.')}",
                "Save the model again from a state before training diverged; float16 overflows where "
                "bfloat16 and float32 do not.",
            )


def _unknown(names: list[str], reference: str) -> MicroscopeError:
    if any("lora_" in name or ".base_layer." in name for name in names):
        hint = "It was saved with an adapter inside: merge the adapter (merge_and_unload) and save again."
    elif any(
        name.endswith(("scales", "qweight", "qzeros", "absmax", "weight_scale", "weight_scale_inv", "SCB"))
        for name in names
    ):
        hint = "The weights are quantised: take the model they were made from."
    else:
        hint = (
            "Take the configuration that belongs to the weights, or save the model again with transformers."
        )
    return _bad(reference, f"{len(names)} of its weights are unknown to the model: {_some(names)}", hint)


def _bad(reference: str, reason: str, hint: str = "Download or save the model again.") -> MicroscopeError:
    return MicroscopeError("bad_model_file", f"The model {reference} cannot be loaded: {reason}.", hint)


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(name[:100] for name in ordered[:_SHOWN]) + (" …" if len(ordered) > _SHOWN else "")


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "of one number"
