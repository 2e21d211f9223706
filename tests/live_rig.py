"""Random autoencoders, adapters and plans, and the plain Hugging Face model under hooks as an oracle.

The oracle shares no code with the live path: it writes the definitions out and runs every layer and position.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor

from microscope.live import ResidentModel
from microscope.models import LoadedModel
from microscope.params import Edit, EditPlan, FeatureRef, Positions
from microscope.patching import LowRank, LowRankAdapter
from microscope.sae import SaeConfig, SparseAutoencoder, TokenFilter, architecture

PROMPT = "the state of union is strong and people ask congress to pass a budget"
# Every kind of edit that needs an autoencoder.
KINDS = ("ablate", "scale", "clamp_firing", "clamp_all", "add", "project", "splice", "ablate_everywhere")
Saes = Mapping[str, SparseAutoencoder]
Adapters = Mapping[str, LowRankAdapter]

# What a half-block adds to the stream leaves these modules; the modules an adapter may change.
_HALVES = {
    "gpt2": ("attn", "mlp"),
    "gemma": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gpt_neox": ("attention", "mlp"),
}
_LINEARS = {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
}
_LLAMA_LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def random_sae(
    d: int, layer: int, seed: int, *, kind: str = "topk", max_norm: float | None = None
) -> SparseAutoencoder:
    config = SaeConfig(
        architecture=kind,
        d_in=d,
        n_latents=64,
        k=6,
        site=f"resid_post.{layer}",
        scale=0.8,
        token_filter=TokenFilter(max_norm=max_norm),
    )
    sae = architecture(kind)(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return sae


def silent_sae(d: int, layer: int, seed: int) -> SparseAutoencoder:
    """An SAE of which no feature ever fires."""
    sae = random_sae(d, layer, seed, kind="jumprelu")
    sae.b_enc.fill_(-1e6)
    return sae


def attach(resident: ResidentModel, sae: SparseAutoencoder) -> str:
    resident.attached.saes[sae.content_fingerprint()] = sae
    return sae.content_fingerprint()


def resident_with(
    loaded: LoadedModel, saes: Sequence[SparseAutoencoder], adapters: Sequence[LowRankAdapter]
) -> ResidentModel:
    """A resident model to which all of them are attached."""
    resident = ResidentModel(loaded)
    for sae in saes:
        attach(resident, sae)
    resident.attached.adapters.update({adapter.fingerprint: adapter for adapter in adapters})
    return resident


def make_edit(
    sae: SparseAutoencoder, index: int, kind: str = "scale", strength: float = 2.0, **rest: object
) -> Edit:
    feature = FeatureRef(sae=sae.content_fingerprint(), index=index)
    return Edit(kind=kind, site=sae.config.site, feature=feature, strength=strength, **rest)  # type: ignore[arg-type]


def random_adapter(loaded: LoadedModel, seed: int, modules: int = 3, rank: int = 2) -> LowRankAdapter:
    """A few low-rank changes of random linear modules, large enough to matter."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    paths = _LINEARS.get(loaded.family.name, _LLAMA_LINEARS)
    for _ in range(modules):
        path = f"{loaded.family.blocks}.{rng.randrange(loaded.n_layers)}.{rng.choice(paths)}"
        weight = loaded.model.get_submodule(path).weight
        out, d_in = weight.shape[::-1] if "c_" in path.rsplit(".", 1)[1] else weight.shape
        a = torch.randn(rank, d_in, generator=generator) * 0.2
        factors[path] = LowRank(a, torch.randn(out, rank, generator=generator) * 0.2)
    return LowRankAdapter(factors)


def random_edit(
    rng: random.Random,
    saes: Sequence[SparseAutoencoder],
    length: int,
    adapters: Sequence[LowRankAdapter] = (),
    kinds: Sequence[str] = ("ablate", "scale", "clamp_firing", "clamp_all", "add", "project"),
) -> Edit:
    where = rng.choice(
        [
            Positions(),
            Positions(include_sinks=True),
            Positions(mode="from", start=rng.randrange(length)),
            Positions(mode="set", indices=tuple(rng.sample(range(length), 2))),
            Positions(mode="generated"),
        ]
    )
    enabled = rng.random() > 0.1
    kind = rng.choice([*kinds, *(["lora"] if adapters else [])])
    strength = rng.choice([0.0, 0.5, 1.0, 2.0, -1.0])
    sae = rng.choice(saes)
    match kind:
        case "lora":
            adapter = rng.choice(adapters)
            some = rng.choice([(), (sorted(adapter.factors)[0],)])
            return Edit(
                kind="lora", adapter=adapter.fingerprint, modules=some, strength=strength, enabled=enabled
            )
        case "splice":
            return Edit(
                kind="splice",
                site=sae.config.site,
                sae=sae.content_fingerprint(),
                positions=where,
                enabled=enabled,
            )
        case "ablate_everywhere":
            return make_edit(sae, rng.randrange(64), kind, enabled=enabled)
    return make_edit(sae, rng.randrange(64), kind, strength, positions=where, enabled=enabled, unit_value=1.5)


def one_splice_per_site(edits: Sequence[Edit]) -> EditPlan:
    """A valid plan of the edits: later splices of a site are muted."""
    seen: set[str] = set()
    kept = []
    for edit in edits:
        again = edit.kind == "splice" and edit.enabled and edit.site in seen
        if edit.kind == "splice" and edit.enabled:
            seen.add(edit.site)
        kept.append(msgspec.structs.replace(edit, enabled=False) if again else edit)
    return EditPlan(edits=tuple(kept))


def by_hand(edit: Edit, sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """The definitions of the edits, written out."""
    pre = (sae.config.scale * x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    match sae.config.architecture:
        case "topk":
            kth = pre.topk(sae.config.k, dim=1).values[:, -1:]
            acts = torch.where(pre >= kth, pre.relu(), 0.0)
        case "jumprelu":
            acts = torch.where(pre > sae.log_threshold.exp(), pre, 0.0)
        case "gated":
            acts = (pre > 0) * (sae.r_mag.exp() * (pre - sae.b_enc) + sae.b_mag).relu()
    if edit.kind == "splice":
        return (acts @ sae.W_dec + sae.b_dec) / sae.config.scale - x
    assert edit.feature is not None
    d = sae.W_dec[edit.feature.index] / sae.config.scale
    unit, f, c = d / d.norm(), acts[:, edit.feature.index], edit.strength * edit.unit_value
    match edit.kind:
        case "ablate":
            return -f[:, None] * d
        case "scale":
            return (edit.strength - 1) * f[:, None] * d
        case "clamp_firing":
            return ((c - f) * (f > 0))[:, None] * d
        case "clamp_all":
            return (c - f)[:, None] * d
        case "add":
            return (c * unit).expand_as(x)
        case "project":
            return (edit.strength - 1) * (x @ unit)[:, None] * unit
    raise AssertionError(edit.kind)


def through_hugging_face(
    loaded: LoadedModel,
    ids: Tensor,
    edits: Sequence[Edit],
    saes: Saes,
    adapters: Adapters | None = None,
    *,
    prompt: int | None = None,
) -> Tensor:
    """Last logits of the plain model, every layer and position, with hooks on its modules."""
    return everywhere_through_hugging_face(loaded, ids, edits, saes, adapters, prompt=prompt)[-1]


def everywhere_through_hugging_face(
    loaded: LoadedModel,
    ids: Tensor,
    edits: Sequence[Edit],
    saes: Saes,
    adapters: Adapters | None = None,
    *,
    prompt: int | None = None,
) -> Tensor:
    """Logits ``[positions, vocabulary]`` of the plain model, with hooks on its modules."""
    family, model = loaded.family, loaded.model
    blocks = model.get_submodule(family.blocks)
    edits = [edit for edit in edits if not edit.is_noop]
    handles = []
    for edit in edits:
        if edit.kind == "lora":
            for path, (a, b) in (adapters or {})[edit.adapter].factors.items():
                if not edit.modules or path in edit.modules:
                    handles.append(
                        model.get_submodule(path).register_forward_hook(_adds(edit.strength * b @ a))
                    )
    rows = [
        saes[e.feature.sae].W_dec[e.feature.index]
        for e in edits
        if e.kind == "ablate_everywhere" and e.feature
    ]
    if rows:
        q, _ = torch.linalg.qr(torch.stack(rows, 1).double())
        away = (torch.eye(len(q), dtype=torch.float64) - q @ q.T).float()
        handles.append(blocks[0].register_forward_pre_hook(input_times(away), with_kwargs=True))
        for block in blocks:
            for half in _HALVES.get(family.name, ("self_attn", "mlp")):
                handles.append(block.get_submodule(half).register_forward_hook(_on_output(away)))
    for layer, block in enumerate(blocks):
        here = [e for e in edits if e.site == f"resid_post.{layer}" and e.kind != "ablate_everywhere"]
        if here:
            handles.append(
                block.register_forward_hook(_edits(here, saes, len(ids) if prompt is None else prompt))
            )
    try:
        with torch.no_grad():
            logits: Tensor = model(ids[None], use_cache=False).logits
            return logits[0].float()
    finally:
        for handle in handles:
            handle.remove()


def stream_in(output: Any) -> Tensor:
    """What a block returns of the stream: all of it, or the first of several things."""
    return output[0] if isinstance(output, (tuple, list)) else output  # type: ignore[no-any-return]


def _adds(change: Tensor) -> Any:
    return lambda _module, inputs, output: output + inputs[0] @ change.T


def input_times(away: Tensor) -> Any:
    """A hook that multiplies a block's stream by a matrix before the block runs."""

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0] @ away, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] @ away}

    return hook


def _on_output(away: Tensor) -> Any:
    def hook(_module: Any, _inputs: object, output: Any) -> Any:
        return (output[0] @ away, *output[1:]) if isinstance(output, tuple) else output @ away

    return hook


def _edits(edits: Sequence[Edit], saes: Saes, prompt: int) -> Any:
    def hook(_module: Any, _inputs: object, output: Any) -> Any:
        x = stream_in(output)[0]
        total = torch.zeros_like(x)
        for edit in edits:
            sae, where = saes[edit.sae or edit.feature.sae], edit.positions  # type: ignore[union-attr]
            keep = torch.ones(len(x), dtype=torch.bool)
            if where.mode == "from":
                keep[: where.start] = False
            elif where.mode == "generated":
                keep[:prompt] = False
            elif where.mode == "set":
                keep = torch.tensor([i in where.indices for i in range(len(x))])
            limit = sae.config.token_filter.max_norm
            if not where.include_sinks and limit is not None:
                keep &= x.norm(dim=1) <= limit
            total += by_hand(edit, sae, x) * keep[:, None]
        changed = (x + total)[None]
        return type(output)((changed, *output[1:])) if isinstance(output, (tuple, list)) else changed

    return hook
