"""What a model's weight files hold, read from their headers, against what its configuration asks for.

``transformers`` fills what a checkpoint lacks with random numbers and passes over what it does not know.
Here every weight of the model is found under a name that is understood, with its shape, or the model is
refused by the name of what is wrong.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models import weight_names
from microscope.models.configuration import pointer_refused
from microscope.models.families import Family
from microscope.models.multimodal import match_text
from microscope.quarantine.content import is_pointer
from microscope.quarantine.tensors import check_safetensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_INDEX_LIMIT = 64 * 2**20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Buffers that older versions stored and that are computed today, and a value head for training by rewards.
_HARMLESS = re.compile(
    r"(rotary_emb|rotary_pos_emb|rotary)\.(inv_freq|cos_cached|sin_cached)$"
    r"|(^|\.)(attn|attention|self_attn|self_attention)\.(bias|masked_bias|causal_mask|embed_positions)$"
    r"|(^|\.)position_ids$|^v_head\."
)
# A configuration may ask for so many blocks before their number is looked up in the files.
_CHEAP_BLOCKS = 256
_NUMBERED = re.compile(r"(?:^|\.)(\d+)(?=\.)")
_SHOWN = 3


@dataclass(frozen=True)
class Stored:
    """Tensors of safetensors files: shape, type and file by name."""

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]
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
            "Save the model again with transformers where you trust the file: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER) writes safetensors.",
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
    """Names, shapes, types and files of all tensors, from checked headers.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
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
            if name in shapes:
                raise _bad(reference, f"'{name}' is in {files_of[name].name} and in {file.name}")
            shapes[name], types[name], files_of[name] = shape, dtype, file
    _check_shards_complete(shapes, files, reference)
    return Stored(shapes, types, files_of)


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


def check_depth(stored: Stored, config: Any, reference: str) -> None:
    """Refuse a configuration that asks for hundreds of blocks more than the files number, before any is built.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    wanted = getattr(config, "num_hidden_layers", None)
    if not isinstance(wanted, int) or wanted <= _CHEAP_BLOCKS:
        return
    numbers = (int(number) for name in stored.shapes for number in _NUMBERED.findall(name))
    highest = max(numbers, default=-1) + 1
    if highest < wanted // 2:
        raise _other_depth(wanted, highest, reference)


def match_names(stored: Stored, skeleton: Any, reference: str, whole: Any = None) -> weight_names.Matched:
    """Find the names under which ``transformers`` knows the stored weights, and check their shapes.

    What is missing or unknown after that is for :func:`check_loaded`.

    Args:
        stored: what the files hold.
        skeleton: the model without storage.
        reference: the model as it was named.
        whole: of a multimodal model, whose text part ``skeleton`` is, all parts without storage.

    Raises:
        MicroscopeError: ``bad_model_file`` naming weights of other shapes, two that are one, lists with gaps,
            or more or fewer blocks than the configuration asks for.
    """
    renaming = weight_names.Renaming(skeleton)
    if whole is None:
        found = weight_names.match(stored.shapes, renaming, lambda name: _HARMLESS.search(name) is not None)
    else:
        found = match_text(stored.shapes, whole, skeleton)
    _check_types(stored, found.own, skeleton, reference)
    if depths := weight_names.other_blocks(found.own, skeleton):
        raise _other_depth(*depths, reference)
    if twice := weight_names.repeated(found.own):
        raise _bad(reference, f"'{twice[0]}' and '{twice[1]}' are the same weight of the model")
    if half := weight_names.half_packed(found.own):
        raise _bad(reference, f"of '{half}' the packed numbers or their scales are in no file")
    if gaps := weight_names.incomplete_list(found.own):
        name, pattern, numbers = gaps
        raise _bad(
            reference,
            f"'{name}' is made of a list of tensors ('{pattern}'), and the files have only the numbers "
            f"{', '.join(map(str, numbers[:20]))}",
        )
    _check_shapes(stored, found.own, renaming.wanted, reference)
    return found


def _check_types(stored: Stored, own: Mapping[str, weight_names.Own], skeleton: Any, reference: str) -> None:
    """Whether weights are floating-point numbers; a table of a model that holds others is found by its name."""
    tables = {name for name, weight in skeleton.state_dict().items() if not weight.is_floating_point()}
    for name, found in own.items():
        if found.rule == weight_names.PACKED:
            continue
        if stored.types[name].startswith(("F", "BF")) == (found.name in tables) and not _HARMLESS.search(
            name
        ):
            raise _bad(
                reference,
                f"'{name}' holds {stored.types[name]}"
                + ("" if found.name in tables else ", not floating-point numbers"),
                "The weights are quantised, or converted wrongly: take the model they were made from.",
            )


def _other_depth(wanted: int, found: int, reference: str) -> MicroscopeError:
    return _bad(
        reference,
        f"the configuration asks for {wanted} blocks, and the files have weights of {found}",
        "Take the configuration that belongs to the weights.",
    )


def _in_body(name: str, family: Family, base: str) -> bool:
    stem = family.blocks.removeprefix(base).rsplit(".", 1)[0]
    return name.removeprefix(base).startswith((f"{stem}.", "embeddings."))


def _check_shapes(
    stored: Stored, own: Mapping[str, weight_names.Own], wanted: Mapping[str, tuple[int, ...]], reference: str
) -> None:
    """Of weights that are taken as they are; those that are joined are checked as they are."""
    for name, found in own.items():
        if found.name is not None and found.rule is None and stored.shapes[name] != wanted[found.name]:
            raise _bad(
                reference,
                f"'{name}' has the shape {_shape(stored.shapes[name])}, and the configuration asks for "
                f"{_shape(wanted[found.name])}",
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


def check_loaded(model: Any, skeleton: Any, family: Family, info: Mapping[str, Any], reference: str) -> None:
    """What ``transformers`` reports of a load, and what it never looks at: ties, and numbers that are none.

    The head of an encoder that came without one becomes zeros, so that the model is the same on every load.

    Args:
        model: the loaded model.
        skeleton: the same without storage.
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
    for name, found, wanted in info.get("mismatched_keys", ()):
        raise _bad(
            reference,
            f"'{name}' has the shape {_shape(tuple(found))}, and the configuration asks for "
            f"{_shape(tuple(wanted))}",
            "Take the configuration that belongs to the weights.",
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise _bad(reference, "it comes with an adapter, which has been put into it")
    _check_ties(model, skeleton, reference)
    _check_finite(model, reference)


@torch.no_grad()
def _zero(model: Any, names: set[str]) -> None:
    for name, weight in model.state_dict(keep_vars=True).items():
        if name in names:
            weight.zero_()


def _check_ties(model: Any, skeleton: Any, reference: str) -> None:
    """Whether weights that the configuration makes one are one: files may hold two that differ."""
    places: dict[int, list[str]] = defaultdict(list)
    for name, weight in skeleton.named_parameters(remove_duplicate=False):
        places[id(weight)].append(name)
    head = skeleton.get_output_embeddings()
    loaded = dict(model.named_parameters(remove_duplicate=False))
    for first, *others in places.values():
        for other in others:
            one, two = loaded.get(first), loaded.get(other)
            if one is two or one is None or two is None or not one.is_floating_point():
                continue
            if head is None or skeleton.get_parameter(first) is not head.weight:
                raise _bad(
                    reference, f"'{first}' and '{other}' are one weight, and its files hold two that differ"
                )
            raise _bad(
                reference,
                "its configuration says that the embedding is also the head (tie_word_embeddings), and its "
                "files hold two that differ",
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
        name.endswith(
            ("scales", "qweight", "qzeros", "absmax", "weight_scale", "weight_scale_inv", "SCB", "_blocks")
        )
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
