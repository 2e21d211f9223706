"""Names of the places in a model where activations are read or changed."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from microscope.errors import MicroscopeError

SiteKind = Literal["resid_post", "resid_mid", "attn_out", "mlp_out", "attn_z", "mlp_act"]
SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)

# The TransformerLens hook each site corresponds to (the same tensor, up to that library's weight folding).
_HOOKS: dict[SiteKind, str] = {
    "resid_post": "hook_resid_post",
    "resid_mid": "hook_resid_mid",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "attn_z": "attn.hook_z",
    "mlp_act": "mlp.hook_post",
}
# Python turns no text of thousands of digits into a number, and no model has that many blocks.
_MOST_DIGITS = 9


class Site(NamedTuple):
    """One place in a model: a kind of activation at one block (0-based).

    ``resid_post`` is a block's output, ``resid_mid`` the residual stream between attention and MLP,
    ``attn_out``/``mlp_out`` what the two halves add to it, ``attn_z``/``mlp_act`` the inputs of their
    output projections (heads concatenated; MLP hidden activations).
    """

    kind: SiteKind
    layer: int

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    @property
    def transformer_lens_name(self) -> str:
        """The TransformerLens hook name, e.g. ``blocks.15.hook_resid_post``."""
        return f"blocks.{self.layer}.{_HOOKS[self.kind]}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read ``resid_post.15`` or a TransformerLens hook name; what block 16 reads is ``resid_post.15``, too.

        Raises:
            MicroscopeError: ``bad_site`` when the text names no site.
        """
        if text.startswith("blocks."):
            _, layer, hook = [*text.split(".", 2), "", ""][:3]
            if hook == "hook_resid_pre" and layer.isdecimal() and len(layer) <= _MOST_DIGITS:
                return cls._before(text, int(layer))
            kind = next((k for k, name in _HOOKS.items() if name == hook), None)
        else:
            name, _, layer = text.partition(".")
            kind = next((k for k in SITE_KINDS if k == name), None)
        if kind is None or not layer.isdecimal() or len(layer) > _MOST_DIGITS:
            raise MicroscopeError(
                "bad_site",
                f"'{text}' names no site.",
                f"Write KIND.LAYER, for example resid_post.15, with KIND one of {', '.join(SITE_KINDS)}.",
            )
        return cls(kind, int(layer))

    @classmethod
    def _before(cls, text: str, layer: int) -> Site:
        """What block ``layer`` reads: the output of the one before it."""
        if layer == 0:
            raise MicroscopeError(
                "bad_site",
                f"'{text}' is the embedding, before the first block: it is not recorded.",
                "Use an SAE of a later block; blocks.1.hook_resid_pre is resid_post.0.",
            )
        return cls("resid_post", layer - 1)
