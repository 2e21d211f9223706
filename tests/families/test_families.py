"""Every causal family of the installed transformers: what the product computes of it is what the plain model computes.

One test per family and function it can be configured to. A family is either equal in everything the product says it
has, or refused for the reason in :mod:`tests.families.refusals`; a family that a newer ``transformers`` adds is tested
by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.activations.forward import SiteReader
from microscope.errors import MicroscopeError
from microscope.live import ResidentModel
from microscope.models import LoadedModel
from microscope.params import SITE_KINDS, Edit, EditPlan, Positions, Site
from microscope.patching import LowRank, LowRankAdapter
from microscope.sae import SparseAutoencoder
from tests.families.attribution import attribution_of
from tests.families.oracle import Plain
from tests.families.outcome import Case, cases, has, opened, remember
from tests.families.refusals import (
    GENERATES_OTHERWISE,
    LIVE_REFUSED,
    NEED_IMAGES,
    NOT_HELD,
    REFUSED,
    UNBUILDABLE,
    listed,
    require,
)
from tests.families.table import table
from tests.families.tiny import auto_class
from tests.live_rig import KINDS, Saes, attach, make_edit, random_sae

# One process finds what the page of models says, too.
pytestmark = pytest.mark.xdist_group("families")
CHAT = [
    {"role": "user", "content": "the state of union is strong and people ask congress"},
    {"role": "assistant", "content": "to pass a budget for roads"},
    {"role": "user", "content": "schools and peace"},
]
# What is said where a family is run for a few positions only.
SHORT = "people ask the house"
SAID = 3


@pytest.mark.parametrize("case", cases(), ids=str)
def test_a_family_is_equal_or_refused(case: Case, tmp_path: Path) -> None:
    outcome, loaded, resident = opened(case, tmp_path)
    remember(outcome)
    if outcome.unbuildable:
        require(UNBUILDABLE, case, outcome.unbuildable)
    if outcome.traced:
        require(REFUSED, case, outcome.traced)
    if loaded is None:
        return
    assert not listed(UNBUILDABLE, case), "it can be built now: take it out of UNBUILDABLE"
    assert not listed(REFUSED, case), "it is loaded now: take it out of REFUSED"
    ids = chat_ids(loaded)
    plain = Plain(loaded.model, ids)
    if case.model_type not in NEED_IMAGES:
        own = auto_class(case.model_type).from_pretrained(tmp_path / str(case), dtype=torch.float32)
        with torch.no_grad():
            logits = own(ids[None], use_cache=False).logits[0]
        close(plain.logits(ids), logits, "the checkpoint as transformers itself loads it")
    rows_equal_hooks(loaded, plain, ids)
    if resident is None:
        require(LIVE_REFUSED, case, outcome.live)
        return
    assert not listed(LIVE_REFUSED, case), "it runs live now: take it out of LIVE_REFUSED"
    assert plain.blocks is not None, "run live, but no chain of blocks"
    everything_live_equals_hooks(case, loaded, resident, plain, ids)
    assert attribution_of(loaded, SHORT) == ("not held" if str(case) in NOT_HELD else "held")


def test_every_expectation_is_of_a_case_there_is() -> None:
    """Tables that name nothing any more would hide a refusal that comes back."""
    named = [
        name for table in (UNBUILDABLE, REFUSED, LIVE_REFUSED) for entry in table for name in entry.cases
    ]
    assert len(named) == len(set(named))
    assert {*named, *NOT_HELD} <= {str(case) for case in cases()}


def chat_ids(loaded: LoadedModel) -> Tensor:
    """A conversation as the tokenizer's own template writes it; its text reads back as the same tokens."""
    ids = loaded.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    text = loaded.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert loaded.encode(text) == ids
    return torch.tensor(ids)


def close(ours: Tensor, plain: Tensor, what: object) -> None:
    """Equal up to the order of float32 sums."""
    assert ours.shape == plain.shape, what
    scale = max(1.0, float(plain.abs().max()))
    torch.testing.assert_close(
        ours.float(), plain.float(), rtol=2e-4, atol=2e-5 * scale, msg=lambda text: f"{what}: {text}"
    )


# --- recording --------------------------------------------------------------------------------------------


def rows_equal_hooks(loaded: LoadedModel, plain: Plain, ids: Tensor) -> None:
    """Every site that is said to exist, of every block: blocks chain, and their parts add up to them."""
    sites = [Site(kind, i) for i in range(loaded.n_layers) for kind in SITE_KINDS if has(loaded, kind, i)]
    if not sites:
        return
    assert plain.blocks is not None, "sites, but no chain of blocks"
    before, after = plain.streams(ids)
    assert len(before) == loaded.n_layers
    for layer, (x, out) in enumerate(zip(before, after, strict=True)):
        here = [site for site in sites if site.layer == layer]
        with SiteReader(loaded, here) as reader:
            read = reader.read(ids[None], torch.ones(1, len(ids), dtype=torch.bool))
        got = {kind: read[f"{kind}.{layer}"][0] for kind in SITE_KINDS if f"{kind}.{layer}" in read}
        assert len(got) == len(here), f"block {layer}: {set(here) - set(got)} never ran"
        if "resid_post" in got:
            close(got["resid_post"], out, f"resid_post.{layer}")
        if loaded.family.causal:
            parts_add_up(got, x, out, layer)
        for kind, written in (("attn_z", "attn_out"), ("mlp_act", "mlp_out")):
            if kind in got:
                assert got[kind].shape[0] == len(ids), kind
                projected(loaded, layer, kind, got[kind], got.get(written))


def parts_add_up(got: dict[str, Tensor], x: Tensor, out: Tensor, layer: int) -> None:
    """Stream in, plus what attention and MLP write, is stream out."""
    attention, middle, mlp = (got.get(kind) for kind in ("attn_out", "resid_mid", "mlp_out"))
    if middle is not None and attention is not None:
        close(middle, x + attention, f"resid_mid.{layer}")
    if middle is not None and mlp is not None:
        close(out, middle + mlp, f"mlp_out.{layer}")
    if attention is not None and mlp is not None:
        close(out, x + attention + mlp, f"attn_out.{layer} and mlp_out.{layer}")


def projected(loaded: LoadedModel, layer: int, kind: str, inner: Tensor, written: Tensor | None) -> None:
    """What the output matrix makes of a site is what is written, up to a norm or scale in between."""
    parts = loaded.family.parts_of(layer)
    path = parts.attention_projection if kind == "attn_z" else parts.mlp_projection
    writer = parts.attention if kind == "attn_z" else parts.mlp
    module = loaded.model.get_submodule(f"{loaded.family.block_path(layer)}.{path}")
    with torch.no_grad():
        out = module(inner)
    if written is not None and path is not None and writer is not None and path.startswith(writer):
        scale = float((out * written).sum() / out.square().sum())
        close(out * scale, written, f"{kind}.{layer}")


# --- live -------------------------------------------------------------------------------------------------


def everything_live_equals_hooks(
    case: Case, loaded: LoadedModel, resident: ResidentModel, plain: Plain, ids: Tensor
) -> None:
    """Base, every kind of edit, replay from the middle, all positions, and continuations."""
    resident.special_tokens = frozenset()
    saes = {sae.content_fingerprint(): sae for sae in some_saes(loaded)}
    low, high = saes.values()
    for sae in saes.values():
        attach(resident, sae)
    _, streams = plain.streams(ids)
    busy = {sae.content_fingerprint(): busiest(sae, streams) for sae in saes.values()}
    text = loaded.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    if len(ids) + SAID > resident.max_context:
        text, ids = SHORT, torch.tensor(loaded.encode(SHORT))
    resident.open("s", text)
    base = plain.logits(ids)
    close(resident.sessions.get("s").baseline.logits, base[-1], "base")
    resident.open("one", "war")
    one = torch.tensor(loaded.encode("war"))
    close(resident.sessions.get("one").baseline.logits, plain.logits(one)[-1], "a single token")

    everywhere = Positions(include_sinks=True)
    plans = [EditPlan(edits=(edit_of(kind, low, busy, everywhere),)) for kind in KINDS]
    middle = Positions(mode="from", start=len(ids) // 2, include_sinks=True)
    plans += [
        EditPlan(edits=(edit_of("add", low, busy, everywhere), edit_of("scale", high, busy, middle))),
        EditPlan(edits=(edit_of("clamp_all", high, busy, middle),)),
        EditPlan(edits=(edit_of("add", low, busy, Positions(mode="set", indices=(len(ids) - 2,))),)),
    ]
    adapter = low_rank(loaded)
    if adapter is not None:
        resident.attached.adapters[adapter.fingerprint] = adapter
        plans.append(EditPlan(edits=(Edit(kind="lora", adapter=adapter.fingerprint, strength=1.0),)))
    writers = writers_of(loaded)
    adapters = resident.attached.adapters

    for plan in plans:
        what = " and ".join(edit.kind for edit in plan.edits)
        if what == "ablate_everywhere" and writers is None:
            with pytest.raises(MicroscopeError) as refusal:
                resident.apply("s", plan)
            assert refusal.value.code == "writers_unknown"
            continue
        hooked = plain.edited(ids, plan.edits, saes, writers=writers or (), adapters=adapters)
        applied = resident.apply("s", plan)
        close(applied.outcome.logits, hooked[-1], what)
        assert not torch.allclose(hooked, base, atol=1e-4), f"{what} changes nothing"
        _, shifts = resident.read_positions("s", plan)
        close(torch.tensor(shifts), divergence(base, hooked), f"{what}, every position")

    said_equals_generate(case, resident, plain, ids)
    plan = plans[0]
    continued(resident, plain, ids, plan, saes)


def some_saes(loaded: LoadedModel) -> list[SparseAutoencoder]:
    """One below the middle and one at the last block but one."""
    layers = (loaded.n_layers // 3, max(loaded.n_layers // 3 + 1, loaded.n_layers - 2))
    kinds = ("topk", "jumprelu")
    return [random_sae(loaded.d_model, i, i, kind=kind) for i, kind in zip(layers, kinds, strict=True)]


def busiest(sae: SparseAutoencoder, streams: list[Tensor]) -> int:
    """The latent that fires most often on the stream it reads."""
    codes = sae.encode(streams[Site.parse(sae.config.site).layer].float())
    return int(torch.bincount(codes.indices[codes.values > 0], minlength=1).argmax())


def edit_of(kind: str, sae: SparseAutoencoder, busy: Mapping[str, int], positions: Positions) -> Edit:
    """An edit of a kind, of a feature that fires."""
    index = busy[sae.content_fingerprint()]
    match kind:
        case "splice":
            return Edit(
                kind="splice", site=sae.config.site, sae=sae.content_fingerprint(), positions=positions
            )
        case "ablate_everywhere":
            return make_edit(sae, index, kind)
    return make_edit(sae, index, kind, 2.5, positions=positions, unit_value=1.5)


def writers_of(loaded: LoadedModel) -> list[str] | None:
    """Modules whose outputs are all that blocks add to the stream, which was shown above; None if unknown."""
    known = all(loaded.family.parts_of(layer).adds_up for layer in range(loaded.n_layers))
    return loaded.family.writers(loaded.n_layers) if known else None


def low_rank(loaded: LoadedModel) -> LowRankAdapter | None:
    """Changes of a linear module in each of two blocks, large enough to matter; None where blocks have none."""
    factors = {}
    generator = torch.Generator().manual_seed(0)
    for layer in (0, loaded.n_layers - 1):
        paths = loaded.family.parts_of(layer).projections
        for path in itertools.islice(paths, 1, 2):
            full = f"{loaded.family.block_path(layer)}.{path}"
            module = loaded.model.get_submodule(full)
            if isinstance(module, nn.Linear | Conv1D):
                out, into = (
                    module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
                )
                a = torch.randn(2, into, generator=generator) * 0.2
                factors[full] = LowRank(a, torch.randn(out, 2, generator=generator) * 0.2)
    return LowRankAdapter(factors) if factors else None


def divergence(base: Tensor, hooked: Tensor) -> Tensor:
    """KL(base ‖ patched) per position."""
    p, q = (logits.double().log_softmax(1) for logits in (base, hooked))
    return (p.exp() * (p - q)).sum(1).clamp_min(0).float()


def said_equals_generate(case: Case, resident: ResidentModel, plain: Plain, ids: Tensor) -> None:
    """Without edits both columns say what ``generate`` says, and what a pass of the whole text says each time."""
    resident.start_generation("s", EditPlan(), max_tokens=SAID)
    base, patched = [], []
    while resident.sessions.get("s").generation is not None:
        step = resident.next_tokens("s")
        base += [step.base.token] if step.base else []
        patched += [step.patched.token] if step.patched else []
    assert base == patched == plain.said(ids, SAID)
    assert (base == plain.generated(ids, SAID)) == (str(case) not in GENERATES_OTHERWISE)


def continued(resident: ResidentModel, plain: Plain, ids: Tensor, plan: EditPlan, saes: Saes) -> None:
    """Under a plan every token is the likeliest of the plain model under hooks, and as probable."""
    resident.start_generation("s", plan, max_tokens=SAID)
    said: list[int] = []
    while resident.sessions.get("s").generation is not None:
        piece = resident.next_tokens("s").patched
        if piece is None:
            break
        whole = torch.cat((ids, torch.tensor(said, dtype=torch.long)))
        hooked = plain.edited(whole, plan.edits, saes, prompt=len(ids))[-1].double().softmax(0)
        assert piece.probability == pytest.approx(float(hooked[piece.token]), rel=1e-3)
        assert piece.probability == pytest.approx(float(hooked.max()), rel=1e-3)
        said.append(piece.token)
    assert said


def test_the_page_of_models_says_what_is_found() -> None:
    """Outcomes that the tests above have found are not found again."""
    page = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    assert page == table(), "docs/models.md is out of date: run `make schema`"
