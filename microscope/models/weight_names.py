"""Names of weights: as files have them, and as the model has them that ``transformers`` builds of them.

``transformers`` renames what older versions wrote and joins what it keeps in one tensor, such as the matrices
of experts. Its own rules are asked here for every stored name, so that what a file lacks, has twice or has
beyond the model is known before anything is read. Wrappers leave their own parts in the names
(``torch.compile`` an ``_orig_mod``, DDP a ``module``, PEFT a ``base_model.model``); those are taken off when
what remains fits one to one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from microscope.models.quantised import packing

# What wrappers put into names, in any position.
_WRAPPERS = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|module)\."
)
# Modules of blocks behind the last one that predict several tokens at once; they take no part in the model.
_PREDICTS_MORE = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head|mtp\w*)\.")


# The rule of weights that are stored as numbers of 4 bits and their scales.
PACKED = "packed"
_HALF = re.compile(r"_(blocks|scales)$")


class Own(NamedTuple):
    """The model's name of a stored weight, None if it has none; what it was called before tensors are joined,
    and the rule that joins them, None for a weight that is taken as it is."""

    name: str | None
    renamed: str
    rule: str | None


class Renaming:
    """The rules by which ``transformers`` names the weights of a model as it loads them.

    Args:
        skeleton: the model without storage.
    """

    def __init__(self, skeleton: Any) -> None:
        rules = get_model_conversion_mapping(skeleton)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._base = f"{skeleton.base_model_prefix}."
        self.wanted = {name: tuple(weight.shape) for name, weight in skeleton.state_dict().items()}
        self._packed = packing(skeleton.config) == "mxfp4"
        self._ignored = [
            re.compile(p) for p in getattr(skeleton, "_keys_to_ignore_on_load_unexpected", None) or ()
        ]

    def own(self, stored: str) -> Own:
        """The model's name of a stored weight."""
        renamed, _ = rename_source_key(stored, self._renamings, [])
        target, rule = rename_source_key(renamed, [], self._converters)
        found = self._found(target)
        if found is None and self._packed and (half := _HALF.search(target)):
            whole = self._found(target[: half.start()])
            return Own(whole, renamed, None if whole is None else PACKED)
        if found is None and self._found(stored) is not None:
            return Own(self._found(stored), stored, None)
        return Own(found, renamed, rule)

    def joins(self, rule: str | None) -> list[tuple[type, str]]:
        """What a rule does with the tensors it collects, comparable between models."""
        converter = next((c for c in self._converters if rule in c.source_patterns), None)
        return (
            [(type(op), repr(sorted(vars(op).items()))) for op in converter.operations] if converter else []
        )

    def is_ignored(self, name: str) -> bool:
        """Whether the model's class knows of a weight that its files hold and that it does not use."""
        return any(pattern.search(name) for pattern in self._ignored)

    def _found(self, name: str) -> str | None:
        return next(
            (o for o in (name, self._base + name, name.removeprefix(self._base)) if o in self.wanted), None
        )


@dataclass(frozen=True)
class Matched:
    """How stored weights fit a model.

    Attributes:
        own: what each stored weight is to the model, by the name it is read under.
        read_as: the names weights are read under, by stored name; None where they are read as they are.
        apart: stored weights of other parts of a multimodal model, which are not read.
    """

    own: Mapping[str, Own]
    read_as: Mapping[str, str] | None
    apart: frozenset[str] = frozenset()


def match(stored: Iterable[str], renaming: Renaming, harmless: Callable[[str], bool]) -> Matched:
    """The names under which stored weights are the model's, with what wrappers left in them taken off."""
    names = list(stored)
    own = {name: renaming.own(name) for name in names}
    if all(found.name is not None or harmless(name) for name, found in own.items()):
        return Matched(own, None)

    def fit(way: Callable[[str], str]) -> int:
        return sum(renaming.own(way(name)).name is not None for name in names)

    ways = unwrapped(names)
    # Of equally good ways the first: the one that changes least.
    way = max(ways, key=fit)
    if way is ways[0]:
        return Matched(own, None)
    read_as = {name: way(name) for name in names}
    return Matched({name: renaming.own(read_as[name]) for name in names}, read_as)


def repeated(own: Mapping[str, Own]) -> tuple[str, str] | None:
    """Two stored weights that are one of the model, if there are such."""
    seen: dict[str, str] = {}
    for stored, found in own.items():
        if found.name is None or found.rule is not None:
            continue
        if found.name in seen:
            return seen[found.name], stored
        seen[found.name] = stored
    joined: dict[str, str] = {}
    for stored, found in own.items():
        if found.name is not None and found.rule is not None:
            if found.name in seen or found.renamed in joined:
                return seen.get(found.name) or joined[found.renamed], stored
            joined[found.renamed] = stored
    return None


def half_packed(own: Mapping[str, Own]) -> str | None:
    """A packed weight of which numbers or scales are missing, if there is one."""
    halves: dict[str, int] = defaultdict(int)
    for found in own.values():
        if found.name is not None and found.rule == PACKED:
            halves[found.name] += 1
    return next((name for name, count in halves.items() if count != 2), None)


def incomplete_list(own: Mapping[str, Own]) -> tuple[str, str, list[int]] | None:
    """A list of tensors that are joined, such as a block's experts, in which numbers are missing.

    ``transformers`` joins those that are there, in order, so that the others would take their places.

    Returns:
        The joined weight, the pattern of the list and the numbers that are there; None if all are complete.
    """
    lists: dict[tuple[str, str], list[int]] = defaultdict(list)
    for found in own.values():
        if found.name is not None and found.rule is not None and "*" in found.rule:
            number = re.search(found.rule.replace("*", r"(\d+)"), found.renamed)
            if number is not None:
                lists[found.name, found.rule].append(int(number[1]))
    longest = {name: max(len(n) for (other, _), n in lists.items() if other == name) for name, _ in lists}
    for (name, rule), numbers in lists.items():
        if sorted(numbers) != list(range(longest[name])):
            return name, rule.replace("\\", ""), sorted(numbers)
    return None


def other_blocks(own: Mapping[str, Own], skeleton: Any) -> tuple[int, int] | None:
    """How many blocks a model has and the files have weights of, where those are not the same.

    Blocks that predict further tokens than the next come after the others and are not counted.
    """
    base = f"{skeleton.base_model_prefix}."
    names = [(found.name or found.renamed).removeprefix(base) for found in own.values()]
    for path, blocks in _lists_of_blocks(skeleton):
        place = re.compile(rf"{re.escape(path.removeprefix(base))}\.(\d+)(\..*)")
        there: dict[int, str] = defaultdict(str)
        for name in names:
            if at := place.match(name):
                there[int(at[1])] += f"{at[2]}. "
        found = {n for n, rest in there.items() if n < len(blocks) or not _PREDICTS_MORE.search(rest)}
        if _needed(blocks) - found or any(number >= len(blocks) for number in found):
            return len(blocks), len(found)
    return None


def _lists_of_blocks(skeleton: Any) -> Iterator[tuple[str, nn.ModuleList]]:
    """The outermost lists of modules."""
    found: list[str] = []
    for path, module in skeleton.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
            yield path, module


def _needed(blocks: nn.ModuleList) -> set[int]:
    """The blocks of a list that have weights which none before them has."""
    seen: set[int] = set()
    needed = set()
    for number, block in enumerate(blocks):
        weights = {id(weight) for weight in block.parameters()}
        if weights - seen:
            needed.add(number)
        seen |= weights
    return needed


def unwrapped(names: Iterable[str]) -> list[Callable[[str], str]]:
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
