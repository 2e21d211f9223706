"""What the answers of a model are made of."""

from __future__ import annotations

import msgspec

from microscope.params.running import Running


class ModelInfo(msgspec.Struct, kw_only=True, frozen=True):
    """What is loaded. ``parameters`` counts weights; ``dtype`` is the arithmetic of the residual stream.

    ``running`` is null where an older worker loaded it, which does not say.
    """

    reference: str
    fingerprint: str
    family: str
    dtype: str
    n_layers: int
    d_model: int
    vocab_size: int
    max_context: int
    parameters: int
    running: Running | None = None


class PromptToken(msgspec.Struct, kw_only=True, frozen=True):
    """One token of the prompt: whether it is special, and whether its norm is that of an attention sink.

    Edits leave such tokens alone unless asked; where the line is, the token filter of each SAE says.
    """

    token: int
    text: str
    special: bool = False
    sink: bool = False


class TokenShift(msgspec.Struct, kw_only=True, frozen=True):
    """Probability of one next token, unpatched and patched."""

    token: int
    text: str
    base: float
    patched: float


class EditReceipt(msgspec.Struct, kw_only=True, frozen=True):
    """What one edit did: the positions where it changed the stream, and by how much at most (L2 norm)."""

    edit: int
    noop: bool
    positions: list[int]
    max_delta: float


class Receipt(msgspec.Struct, kw_only=True, frozen=True):
    """Proof of what was applied, so that a silent no-op cannot look like a result.

    ``baseline`` is a hash of the unpatched logits, ``reused`` says how the answer was made:
    ``"cache"`` (this very state was seen before), ``"baseline"`` (nothing changed) or ``"computed"``.
    ``path`` says how the model was run, in the words of ``Running``.
    """

    plan: str
    edits: list[EditReceipt]
    baseline: str
    reused: str
    first_layer: int
    first_position: int
    path: str = "fast"


class Timings(msgspec.Struct, kw_only=True, frozen=True):
    """Milliseconds spent inside the resident worker."""

    queued: float
    compute: float


class GeneratedPiece(msgspec.Struct, kw_only=True, frozen=True):
    """One new token: what it adds to the text, which is nothing inside a character, and its probability."""

    token: int
    text: str
    probability: float


class FeatureValues(msgspec.Struct, kw_only=True, frozen=True):
    """Activation of one feature at every position of the prompt (0 where silent)."""

    index: int
    values: list[float]
