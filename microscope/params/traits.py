"""What export targets need to know of a model: facts of its structure, and what stands in the way of each target."""

from __future__ import annotations

import msgspec

# Reasons, as sentences: looked for in a model's structure, shown with the verdict on a target.
NORM_BEHIND = "This family normalises what a module writes before adding it: projected weights would not stay projected."
NORM_BEHIND_EMBEDDING = (
    "This family normalises its embedding before the first block: projected rows would not stay projected."
)
EMBEDDING_ELSEWHERE = (
    "Blocks read the embedding beside the stream, too: projected rows would change what they read there."
)
WRITER_BIASES = "The output projections have biases, which an adapter cannot project."
TIED = "The embedding is also the head: an adapter on it would change both when merged."
SEVERAL_TABLES = "More than one table of embeddings makes up what the first block reads; adapters change one."
OTHER_MATRICES = (
    "Experts or other weights that are no linear modules write to the stream, and no adapter changes those."
)
NO_BIAS = "This architecture has no place for a bias; a low-rank update that is nearly constant is fitted."
BLOCK_WITHOUT_BIAS = (
    "This block has no place for a bias; a low-rank update that is nearly constant is fitted."
)
NO_MATRICES = (
    "No linear module of this family's blocks is known to write to the stream, so there is nothing to fit."
)
ENCODER = "Encoders predict no next token; patches of them are not exported."
TEXT_PART = (
    "This is the text part of a multimodal model, whose modules have other names in the whole: loaders of "
    "adapters would not find them there."
)
TRANSPOSED = "This family keeps its weights transposed; servers refuse or misread adapters for it."

# Families of models that were looked at before these facts were kept with them.
_SANDWICH = frozenset({"gemma2", "gemma3_text"})
_BIASED = frozenset({"llama", "gpt2", "gpt_neox"})
_TRANSPOSED = frozenset({"gpt2"})
_ENCODERS = frozenset({"bert", "roberta"})


class Obstacles(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the way of exports of one model, as sentences; empty where nothing does.

    ``patches``: of any. ``writers``: of a direction taken out of all that is written to the stream, by whatever
    means. ``projection``: of weights with a direction taken out of all that they write to the
    stream, ``adapted_projection``: of adapters that do the same. ``adapters``: of adapters in PEFT's layout.
    ``fits``: of low-rank updates that are fitted. ``constant``: of a constant as a bias, in blocks other than
    ``constant_blocks``. ``renamed`` are last parts of modules' names that PEFT takes for those of experts, which
    ``transformers`` once kept as modules. ``proven`` is False where the model's weights were not at hand to look at.
    """

    patches: str = ""
    writers: str = ""
    projection: str = ""
    adapted_projection: str = ""
    adapters: str = ""
    fits: str = ""
    constant: str = NO_BIAS
    constant_blocks: tuple[int, ...] = ()
    renamed: tuple[str, ...] = ()
    proven: bool = True


class ModelTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What the verdicts need to know of a model.

    ``tied`` says that the embedding is also the head; ``writer_bias`` that an output projection has a bias.
    ``found`` is what stands in the way; None of a model that was looked at by an older version.
    """

    model_type: str
    n_layers: int
    tied: bool = False
    writer_bias: bool = False
    found: Obstacles | None = None

    @property
    def obstacles(self) -> Obstacles:
        """What stands in the way; where that was not looked for, as the family's name tells."""
        if self.found is not None:
            return self.found
        kind = self.model_type
        return Obstacles(
            patches=ENCODER if kind in _ENCODERS else "",
            projection=NORM_BEHIND if kind in _SANDWICH else "",
            adapted_projection=WRITER_BIASES if self.writer_bias else TIED if self.tied else "",
            adapters=TRANSPOSED if kind in _TRANSPOSED else "",
            constant_blocks=tuple(range(self.n_layers)) if kind in _BIASED else (),
        )
