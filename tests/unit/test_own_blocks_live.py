"""Live sessions, splices and the logit lens of models of any type, most of which only their own blocks can run."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from microscope.activations import forward
from microscope.activations.forward import SiteReader
from microscope.errors import MicroscopeError
from microscope.evaluation.splice import HookSplicer, ResidualSplicer, splicer_for
from microscope.features.accumulator import AnalysisContext
from microscope.features.logits import LogitLens, direction_effects
from microscope.live import ResidentModel
from microscope.models import LoadedModel, load_model, runner_for
from microscope.models.runner import KeyValue
from microscope.models.running import site_reach
from microscope.params import AnalyseParams, EditPlan, Positions, Site
from microscope.sae import SaeConfig, SparseAutoencoder, TokenFilter, architecture
from tests.families.tiny import make_any
from tests.live_rig import PROMPT, attach, make_edit, random_sae
from tests.unit.test_live_generated import Conversation, close

IDS = torch.randint(3, 200, (12,), generator=torch.Generator().manual_seed(1))
NOTHING_SPECIAL = torch.zeros(12, dtype=torch.bool)


@pytest.fixture(scope="module")
def of_type(tmp_path_factory: pytest.TempPathFactory):
    """A tiny loaded model of a type."""

    @functools.cache
    def load(model_type: str) -> LoadedModel:
        folder: Path = make_any(model_type, tmp_path_factory.mktemp(model_type))
        return load_model(str(folder), dtype="float32", device="cpu")

    return load


# Keys and values in caches of every block; of some; a recurrent state; no cache that fits; experts; a list returned.
@pytest.mark.parametrize("model_type", ["gptj", "jamba", "mamba2", "rwkv", "dbrx", "openai-gpt"])
def test_every_answer_is_what_the_plain_model_says(of_type, model_type):
    loaded = of_type(model_type)
    talk = Conversation(loaded, seed=5, inside_blocks=False)
    requests = (talk.apply, talk.positions, talk.features, talk.write, talk.begin)
    for _ in range(20):
        talk.rng.choices(requests, weights=(4, 3, 1, 4, 1))[0]()


def test_keys_and_values_of_other_widths_are_cut_out_of_larger_products():
    product = torch.randn(1, 2, 5, 24)
    key, value = product[..., :16], product[..., 16:]
    kept = KeyValue(key, value).compact()
    assert torch.equal(kept.key, key)
    assert torch.equal(kept.value, value)
    assert kept.key.untyped_storage().nbytes() + kept.value.untyped_storage().nbytes() == product.nbytes
    assert kept.key.untyped_storage().data_ptr() != product.untyped_storage().data_ptr()


def test_a_recurrent_model_is_run_from_the_first_position(of_type):
    """Where nothing is recurrent, from the first row that an edit changes."""
    for model_type, first in (("jamba", 0), ("gptj", 5)):
        loaded = of_type(model_type)
        resident = ResidentModel(loaded)
        resident.special_tokens = frozenset()
        sae = random_sae(loaded.d_model, 1, 1)
        attach(resident, sae)
        resident.open("s", PROMPT)
        late = make_edit(sae, 3, "add", 4.0, positions=Positions(mode="from", start=5, include_sinks=True))
        outcome = resident.apply("s", EditPlan(edits=(late,))).outcome
        assert (outcome.first_layer, outcome.first_position) == (1, first)
        assert resident.apply("s", EditPlan(edits=(late,))).path == resident.runner.path
        top = random_sae(loaded.d_model, loaded.n_layers - 1, 1)
        attach(resident, top)
        never = make_edit(top, 3, "add", 4.0, positions=Positions(mode="set", indices=(500,)))
        assert resident.apply("s", EditPlan(edits=(never,))).reused == "baseline"


@pytest.mark.parametrize("model_type", ["jamba", "rwkv"])
def test_texts_written_at_the_same_time_are_those_written_alone(of_type, model_type):
    """Under plans that change in between: no state of one session reaches another's."""
    loaded = of_type(model_type)
    saes = [random_sae(loaded.d_model, layer, 1) for layer in range(loaded.n_layers)]
    prompts = (PROMPT, "people ask the house")

    def plan(session: int, step: int) -> EditPlan:
        sae = saes[(session + step) % len(saes)]
        return EditPlan(
            edits=(make_edit(sae, 3, "add", 1.0 + step, positions=Positions(include_sinks=True)),)
        )

    def written(sessions: list[int]) -> dict[int, list[object]]:
        resident, said = ResidentModel(loaded), {session: [] for session in sessions}
        for sae in saes:
            attach(resident, sae)
        for session in sessions:
            resident.open(str(session), prompts[session])
            resident.start_generation(str(session), EditPlan(), max_tokens=7, seed=session, temperature=0.7)
        for step in range(6):
            for session in sessions:
                if step % 2:
                    resident.apply(str(session), plan(session, step))
                said[session].append(resident.next_tokens(str(session)))
        return said

    assert written([0, 1]) == written([0]) | written([1])


def test_what_a_recurrent_state_takes_is_counted_once(of_type):
    """Keys and values grow with the text; the states of Mamba do not."""
    for model_type in ("mamba", "gptj", "jamba"):
        loaded = of_type(model_type)
        resident = ResidentModel(loaded)
        for prompt in ("the state of", PROMPT):
            resident.open("s", prompt)
            session = resident.sessions.get("s")
            rows = len(session.tokens)
            rest = 4 * loaded.vocab_size + 4 * rows * loaded.d_model + 9 * rows
            assert session.nbytes == resident.sessions.run_bytes(rows) + rest
        fixed = resident.sessions.run_bytes(0)
        assert (fixed > 0) == (model_type != "gptj")


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        *(("granite", kind) for kind in ("attn_out", "mlp_out", "resid_mid", "resid_post")),
        *(("dbrx", kind) for kind in ("attn_out", "mlp_out")),
        ("bloom", "mlp_out"),
        ("openai-gpt", "resid_post"),
    ],
)
def test_a_splice_puts_back_what_the_site_means(of_type, model_type, kind):
    """Its own activation changes nothing; half of it is half of what the block adds, whatever it is multiplied by."""
    loaded = of_type(model_type)
    site = Site(kind, 1)
    sae = identity(loaded.d_model, str(site), share=1.0)
    splicer = HookSplicer(loaded, sae, site, site)
    with torch.inference_mode():
        plain = loaded.model(IDS[None], use_cache=False).logits[0].log_softmax(-1)
        close(splicer.start(IDS, NOTHING_SPECIAL), plain)
        close(splicer.replaced("sae", filtered=False), plain)
        half = identity(loaded.d_model, str(site), share=0.5)
        found = HookSplicer(loaded, half, site, site)
        found.start(IDS, NOTHING_SPECIAL)
        close(found.replaced("sae", filtered=False), through_half(loaded, kind))


def test_a_block_s_output_is_spliced_by_running_the_blocks_above(of_type):
    loaded = of_type("jamba")
    sae = identity(loaded.d_model, "resid_post.1", share=0.5)
    by_blocks = splicer_for(loaded, sae)
    assert isinstance(by_blocks, ResidualSplicer)
    by_hooks = HookSplicer(loaded, sae, Site("resid_post", 1), Site("resid_post", 1))
    with torch.inference_mode():
        for splicer in (by_blocks, by_hooks):
            splicer.start(IDS, NOTHING_SPECIAL)
        one, two = (s.replaced("sae", filtered=False) for s in (by_blocks, by_hooks))
        close(one, two)


def test_models_whose_blocks_need_each_other_are_spliced_by_hooks(of_type):
    loaded = of_type("glm_moe_dsa")
    with pytest.raises(MicroscopeError, match="reads what earlier blocks computed"):
        runner_for(loaded)
    splicer = splicer_for(loaded, identity(loaded.d_model, "resid_post.1", share=1.0))
    assert isinstance(splicer, HookSplicer)


# Plain; a bias in the head; scaled logits; a matrix between norm and head; no norm at all; a soft cap.
@pytest.mark.parametrize("model_type", ["mixtral", "gptj", "cohere", "opt", "openai-gpt", "gemma2"])
def test_the_logit_lens_is_what_a_small_step_does(of_type, model_type):
    """Averaged over streams, and in front of a soft cap, centred over the vocabulary."""
    loaded = of_type(model_type)
    runner = runner_for(loaded)
    direction = torch.randn(4, loaded.d_model, generator=torch.Generator().manual_seed(2))
    found = direction_effects(runner)(direction)
    streams = 3 * torch.randn(64, loaded.d_model, generator=torch.Generator().manual_seed(3))
    cap = getattr(loaded.config, "final_logit_softcapping", None)

    def logits(x: torch.Tensor) -> torch.Tensor:
        said = runner.head(x).double()
        return said if cap is None else cap * torch.atanh(said / cap)

    steps = [(logits(streams + 1e-2 * d) - logits(streams - 1e-2 * d)).mean(0) for d in direction]
    for ours, step in zip(found.double(), steps, strict=True):
        ours, step = ours - ours.mean(), step - step.mean()
        assert float(torch.nn.functional.cosine_similarity(ours, step, dim=0)) > 0.85


def test_no_logit_lens_where_the_head_is_more_than_a_matrix(of_type):
    """An analysis goes on without it, and says so."""
    loaded = of_type("modernbert-decoder")
    with pytest.raises(MicroscopeError) as refused:
        direction_effects(runner_for(loaded))
    assert refused.value.code == "no_logit_lens"
    params = AnalyseParams(sae_path="x", activations="x")
    context = AnalysisContext(
        random_sae(loaded.d_model, 1, 1),
        None,  # type: ignore[arg-type]
        loaded,
        params,
        np.arange(3),
    )
    assert list(LogitLens(context).results()) == [{"promoted": [], "suppressed": []}] * 3
    assert "no norm with a gain" in context.left_out[0]


def test_which_sites_there_are_is_said_block_by_block(of_type):
    """Of a model with two kinds of blocks, and of one with parallel ones."""
    reach = {site.kind: site for site in site_reach(of_type("gptj").family, 4)}
    assert reach["resid_post"].blocks == (0, 1, 2, 3)
    assert (reach["resid_mid"].blocks, reach["resid_mid"].reason) == ((), "attention and MLP run in parallel")
    assert reach["attn_z"].blocks == (0, 1, 2, 3)


def identity(d: int, site: str, *, share: float) -> SparseAutoencoder:
    """An SAE whose reconstruction is a share of what it reads."""
    config = SaeConfig(
        architecture="topk", d_in=d, n_latents=2 * d, k=d, site=site, token_filter=TokenFilter()
    )
    sae = architecture("topk")(config).requires_grad_(False)
    eye = torch.eye(d)
    sae.W_enc.copy_(torch.cat((eye, -eye)))
    sae.W_dec.copy_(share * torch.cat((eye, -eye)))
    for name, parameter in sae.named_parameters():
        if name.startswith("b_"):
            parameter.zero_()
    return sae


def through_half(loaded: LoadedModel, kind: str) -> torch.Tensor:
    """The plain model's log-probabilities with half of an activation of block 1, by hooks of our own."""
    parts, block = loaded.family.parts_of(1), loaded.model.get_submodule(loaded.family.block_path(1))

    def halved(_module: object, _inputs: object, output):
        if isinstance(output, (tuple, list)):
            return type(output)((output[0] / 2, *output[1:]))
        return output / 2

    def halved_input(_module: object, args):
        return (args[0] / 2, *args[1:])

    module = {"attn_out": parts.attention, "mlp_out": parts.mlp, "resid_post": ""}.get(kind)
    if module is None:
        assert parts.between is not None
        handle = block.get_submodule(parts.between.path).register_forward_pre_hook(halved_input)
    else:
        handle = block.get_submodule(module).register_forward_hook(halved)
    try:
        return loaded.model(IDS[None], use_cache=False).logits[0].log_softmax(-1)
    finally:
        handle.remove()


def test_a_model_that_keeps_a_state_in_its_modules_is_read_by_one_thread_at_a_time(of_type, monkeypatch):
    """Others are read by several on a CPU, each of which runs texts of its own."""
    sizes: list[int] = []
    own = forward.start_in_pieces

    def noted(some, count, size):
        sizes.append(size)
        return own(some, count, size)

    monkeypatch.setattr(forward, "start_in_pieces", noted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for model_type, size in (("gptj", 1), ("recurrent_gemma", 2)):
        loaded, windows = of_type(model_type), [np.arange(3, 15), np.arange(20, 32)]
        with SiteReader(loaded, [Site("resid_post", 1)]) as reader:
            both = reader.read_windows(windows)
            assert sizes.pop() == size
            alone = [reader.read_windows([window]) for window in windows]
        for rows, each in zip(both["resid_post.1"], alone, strict=True):
            np.testing.assert_allclose(rows.values, each["resid_post.1"][0].values, rtol=2e-3, atol=2e-3)
        sizes.clear()
