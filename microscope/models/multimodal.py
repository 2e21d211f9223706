"""The text part of a multimodal model: which stored weights are its, and whether it answers as the whole does.

Vision and sound are neither read nor run. That the part alone computes what the whole model computes of a
text is no matter of names: settings of one may be passed over by the other. So the whole model's own code
is run once over the part's weights, and the logits are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from microscope.errors import MicroscopeError
from microscope.models.placement import is_spread
from microscope.models.weight_names import Matched, Own, Renaming

# Tokens of the comparison, and the difference allowed, relative to the largest logit, by the size of a number.
_TOKENS, _ALLOWED = 16, {4: 1e-4, 2: 2e-2}


@dataclass(frozen=True)
class TextPart:
    """Where the modules of a text part are in the multimodal model, which is of the type ``whole``.

    ``body`` are the paths of all but the head in the part and in the whole; ``outside`` are those of the head.
    """

    whole: str
    body: tuple[str, str]
    outside: Mapping[str, str]

    def in_whole(self, path: str) -> str:
        """Path in the whole model of a module of the part."""
        here, there = self.body
        return self.outside.get(path, there + path.removeprefix(here))


def text_part(whole: Any, text: Any) -> TextPart:
    """Where the text part of a multimodal model is; neither needs storage.

    Raises:
        MicroscopeError: ``unsupported_configuration`` where the whole model has no such part.
    """
    names = text_names(_shapes(whole), _shapes(text), text)
    here = _path_of(text, text.get_input_embeddings()).split(".")[0]
    body = [(name, there) for there, name in names.items() if name.startswith(f"{here}.")]
    if not body:
        raise _not_the_same(str(whole.config.model_type), "the whole model has no such part")
    name, there = body[0]
    outside = {
        name.rpartition(".")[0]: there.rpartition(".")[0]
        for there, name in names.items()
        if not name.startswith(f"{here}.")
    }
    place = there.removesuffix(name.removeprefix(here))
    return TextPart(str(whole.config.model_type), (here, place), outside)


def match_text(stored: Iterable[str], whole: Any, text: Any) -> Matched:
    """The names under which stored weights are those of a multimodal model's text part.

    Args:
        stored: names in the files, of all parts.
        whole: the multimodal model without storage.
        text: the model of the text alone, without storage.
    """
    of_whole, of_text = Renaming(whole), Renaming(text)
    moved = text_names(of_whole.wanted, of_text.wanted, text)
    own: dict[str, Own] = {}
    read_as: dict[str, str] = {}
    apart = set()
    for name in stored:
        there = of_whole.own(name)
        if there.name is None:
            if of_whole.is_ignored(there.renamed):
                apart.add(name)
            else:
                own[name], read_as[name] = of_text.own(name), name
        elif there.name not in moved:
            apart.add(name)
        else:
            wanted, joins = moved[there.name], of_whole.joins(there.rule)
            ways = (*_shorter(name), *_shorter(there.renamed), wanted)
            short = next((way for way in ways if _is(of_text, way, wanted, joins)), name)
            own[name], read_as[name] = of_text.own(short), short
    return Matched(own, read_as, frozenset(apart))


def _is(renaming: Renaming, name: str, wanted: str, joins: Any) -> bool:
    found = renaming.own(name)
    return found.name == wanted and renaming.joins(found.rule) == joins


def _shorter(name: str) -> Iterator[str]:
    """A name, and without its first parts."""
    while True:
        yield name
        if "." not in name:
            return
        name = name.split(".", 1)[1]


def text_names(
    whole: Mapping[str, tuple[int, ...]], text: Mapping[str, tuple[int, ...]], model: Any
) -> dict[str, str]:
    """Weights of a multimodal model that are those of its text part: names in one to names in the other.

    The part is found as the place under which every weight of the text model's body has its name and shape.
    """
    base = _path_of(model, model.get_input_embeddings()).split(".")[0] + "."
    body = {name.removeprefix(base): shape for name, shape in text.items() if name.startswith(base)}
    head = {name: shape for name, shape in text.items() if not name.startswith(base)}
    first = next(iter(body))
    places = [name.removesuffix(first) for name in whole if name.endswith(f".{first}") or name == first]
    for place in places:
        if all(whole.get(place + name) == shape for name, shape in body.items()):
            found = {place + name: base + name for name in body}
            outside = [name for name in whole if name not in found]
            for name, shape in head.items():
                at = [o for o in outside if (o == name or o.endswith(f".{name}")) and whole[o] == shape]
                if at:
                    found[min(at, key=len)] = name
            return found
    return {}


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is wanted)


@torch.no_grad()
def check_same_logits(whole: Any, skeleton: Any, model: Any, reference: str) -> None:
    """Run a multimodal model's own code over the weights of its text part, and compare what both say.

    Args:
        whole: the multimodal model without storage; its weights of vision and sound are never asked for.
        skeleton: its text part without storage.
        model: its text part, loaded.
        reference: the model as it was named.

    Raises:
        MicroscopeError: ``unsupported_configuration`` with the difference, or with what keeps the whole
            model from running on a text alone.
    """
    if any(type(module) is type(model) for module in whole.modules()):
        return  # the whole model runs this very class
    _put_weights(whole.eval(), skeleton, model)
    whole.set_attn_implementation(model.config._attn_implementation)
    vocabulary = model.get_input_embeddings().num_embeddings
    first = next(model.parameters())
    tokens = torch.arange(_TOKENS, device=first.device)[None] * 7 % vocabulary
    expected = model(tokens).logits.float()
    try:
        found = whole(input_ids=tokens).logits.float()
    except Exception as error:  # models that take no text alone fail in their own ways
        raise _not_the_same(
            reference, f"the whole model does not run on text alone ({_line(error)})"
        ) from error
    limit = _ALLOWED.get(first.element_size(), 2e-2) * float(expected.abs().max())
    difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    if not difference <= limit:
        raise _not_the_same(
            reference, f"logits of the two differ by {difference:.3g}, where {limit:.3g} is rounding"
        )


def _put_weights(whole: Any, skeleton: Any, model: Any) -> None:
    """Give a multimodal model without storage the weights of its text part; its own code stays.

    Only modules whose weights are rounded, or that move their inputs between devices, are put in whole.
    """
    part = text_part(whole, skeleton)
    for path, module in model.named_modules():
        place = part.in_whole(path)
        weights = dict(module.named_parameters(recurse=False))
        if not weights and not module._buffers:
            continue
        if is_spread(model) or not all(weight.is_floating_point() for weight in weights.values()):
            whole.set_submodule(place, module)
            continue
        target = whole.get_submodule(place)
        for name, weight in weights.items():
            setattr(target, name, weight)
        target._buffers.update(module._buffers)
    # Code asks the first of all weights where the model is. Those of other parts are there, and of no size.
    first = next(model.parameters())
    nothing = torch.empty(0, dtype=first.dtype if first.is_floating_point() else None, device=first.device)
    for module in whole.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.device.type == "meta":
                setattr(module, name, nn.Parameter(nothing, requires_grad=False))


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _line(error: Exception) -> str:
    return (str(error).strip().split("\n", 1)[0] or type(error).__name__)[:200]


def _not_the_same(reference: str, reason: str) -> MicroscopeError:
    return MicroscopeError(
        "unsupported_configuration",
        f"{reference} is a multimodal model, and its text part alone could not be shown to compute what the whole "
        f"model computes of a text: {reason}.",
        "Use a model of text alone.",
    )
