"""Edits, incremental re-inference, and the isolation of sessions."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

import pytest
import torch

from microscope.errors import MicroscopeError
from microscope.live import PromptRun, Replayed, ResidentModel, compare, replay, run_baseline
from microscope.models import LoadedModel, load_model, runner_for
from microscope.models.runner import registry
from microscope.params import Edit, EditPlan, Positions, plan_fingerprint
from microscope.patching import LowRank, LowRankAdapter, save_adapter
from microscope.patching.program import bind
from microscope.sae import SparseAutoencoder, TokenFilter
from tests.live_rig import (
    KINDS,
    PROMPT,
    attach,
    by_hand,
    make_edit,
    one_splice_per_site,
    random_adapter,
    random_edit,
    random_sae,
    through_hugging_face,
)


def run_plan(
    loaded: LoadedModel, baseline: PromptRun, edits: Sequence[Edit], saes: Mapping[str, SparseAutoencoder]
) -> Replayed:
    program = bind(
        EditPlan(edits=tuple(edits)), family=loaded.family, n_layers=loaded.n_layers, saes=saes, adapters={}
    )
    return replay(runner_for(loaded), (baseline,), program, saes)


def counting(runner_class: type, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Block, rows and first position of everything that runs; marked where only the last row comes out."""
    ran: list[tuple[object, ...]] = []
    block, last_row = runner_class.block, runner_class.last_row

    def counted(self, layer, x, rows, past, patch=None):
        ran.append((layer, x.shape[1], rows.start))
        return block(self, layer, x, rows, past, patch)

    def counted_last(self, layer, x, rows, past):
        ran.append((layer, x.shape[1], rows.start, "last row"))
        return last_row(self, layer, x, rows, past)

    monkeypatch.setattr(runner_class, "block", counted)
    monkeypatch.setattr(runner_class, "last_row", counted_last)
    return ran


def test_random_toggling_equals_the_plain_full_forward(tiny):
    """Random mixes of all kinds, layers, positions and strengths, changed one at a time as people do.

    Every answer starts from whichever earlier run is nearest, and must equal hooks on the Hugging Face
    model over all layers and positions.
    """
    rng = random.Random(0)
    ids = torch.tensor(tiny.tokenizer(PROMPT)["input_ids"])
    resident = ResidentModel(tiny)
    resident.special_tokens = frozenset()
    resident.open("s", PROMPT)
    norm = float(resident.sessions.get("s").baseline.residuals[1].norm(dim=1).quantile(0.8))
    saes = [
        random_sae(32, layer, seed, kind=kind, max_norm=norm if seed % 2 else None)
        for layer in range(4)
        for seed, kind in ((1, "topk"), (2, ("jumprelu", "gated")[layer % 2]))
    ]
    table = {attach(resident, sae): sae for sae in saes}
    adapters = [random_adapter(tiny, seed) for seed in range(3)]
    resident.attached.adapters.update({adapter.fingerprint: adapter for adapter in adapters})
    edits: list[Edit] = []
    starts = set()
    for _ in range(70):
        if len(edits) < 2 or (len(edits) < 5 and rng.random() < 0.4):
            edits.insert(rng.randrange(len(edits) + 1), random_edit(rng, saes, len(ids), adapters, KINDS))
        elif rng.random() < 0.5:
            edits.pop(rng.randrange(len(edits)))
        else:
            edits[rng.randrange(len(edits))] = random_edit(rng, saes, len(ids), adapters, KINDS)
        plan = one_splice_per_site(edits)
        applied = resident.apply("s", plan)
        expected = through_hugging_face(tiny, ids, plan.edits, table, resident.attached.adapters)
        torch.testing.assert_close(
            applied.outcome.logits, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max()))
        )
        starts.add((applied.outcome.first_layer, applied.outcome.first_position > 0))
    assert len(starts) > 5  # it did start from many places


def test_edits_that_change_nothing_are_the_baseline_itself(llama):
    runner = runner_for(llama)
    ids = torch.tensor(llama.tokenizer(PROMPT)["input_ids"])
    baseline = run_baseline(runner, ids, torch.zeros(len(ids), dtype=torch.bool))
    sae = random_sae(32, 1, 0)
    table = {sae.content_fingerprint(): sae}
    silent = next(i for i in range(64) if i not in sae.encode(baseline.residuals[1]).indices)
    for edit in (
        make_edit(sae, silent, "ablate"),
        make_edit(sae, silent, "scale", 50.0),
        make_edit(sae, 3, "scale", 1.0),
        make_edit(sae, 3, "project", 1.0),
        make_edit(sae, 3, "add", 0.0),
        make_edit(sae, 3, "add", 5.0, positions=Positions(mode="from", start=99)),
        make_edit(sae, 3, "add", 5.0, enabled=False),
    ):
        replayed = run_plan(llama, baseline, (edit,), table)
        assert replayed.run.logits is baseline.logits
        assert replayed.first_layer == -1


def test_only_what_changes_is_computed(llama, monkeypatch):
    """From the edited block up, from the first changed position on, and nothing else."""
    runner = runner_for(llama)
    ids = torch.tensor(llama.tokenizer(PROMPT)["input_ids"])
    baseline = run_baseline(runner, ids, torch.zeros(len(ids), dtype=torch.bool))
    sae = random_sae(32, 1, 0)
    ran = counting(type(runner), monkeypatch)
    edit = make_edit(sae, 3, "add", 5.0, positions=Positions(mode="from", start=9))
    replayed = run_plan(llama, baseline, (edit,), {edit.sae_needed: sae})
    assert ran == [(2, len(ids) - 9, 9), (3, len(ids) - 9, 9, "last row")]
    assert (replayed.first_layer, replayed.first_position) == (1, 9)
    assert replayed.run.effects()[0].positions == tuple(range(9, len(ids)))


def test_the_baseline_is_never_written_to(llama):
    runner = runner_for(llama)
    ids = torch.tensor(llama.tokenizer(PROMPT)["input_ids"])
    baseline = run_baseline(runner, ids, torch.zeros(len(ids), dtype=torch.bool))
    copies = [t.clone() for t in (*baseline.residuals, *itertools.chain(*baseline.past), baseline.logits)]
    saes = {}
    rng = random.Random(1)
    all_saes = [random_sae(32, layer, 1) for layer in range(4)]
    saes = {s.content_fingerprint(): s for s in all_saes}
    for _ in range(20):
        run_plan(llama, baseline, [random_edit(rng, all_saes, len(ids)) for _ in range(3)], saes)
    now = (*baseline.residuals, *itertools.chain(*baseline.past), baseline.logits)
    assert all(torch.equal(a, b) for a, b in zip(copies, now, strict=True))


def test_receipts_name_the_positions_and_the_size(llama):
    resident = ResidentModel(llama)
    sae = random_sae(32, 2, 3)
    attach(resident, sae)
    resident.open("s", PROMPT)
    x = resident.sessions.get("s").baseline.residuals[2]
    fired = [(i, (sae.encode(x).indices == i).any(1).nonzero()[:, 0].tolist()) for i in range(64)]
    index, places = next((i, p) for i, p in fired if 0 < len(p) < 5)
    applied = resident.apply("s", EditPlan(edits=(make_edit(sae, index, "ablate"),)))
    effect = applied.outcome.effects[0]
    by = by_hand(effect.edit, sae, x)
    assert list(effect.positions) == [p for p in places if float(by[p].norm()) > 0]
    assert effect.max_delta == pytest.approx(float(by.norm(dim=1).max()), rel=1e-4)
    assert applied.fingerprint == plan_fingerprint((effect.edit,))


def test_special_tokens_and_sinks_are_left_alone_unless_asked(llama):
    resident = ResidentModel(llama)
    resident.special_tokens = frozenset({llama.tokenizer("state")["input_ids"][0]})
    sae = random_sae(32, 2, 3)
    resident.open("s", PROMPT)
    norms = resident.sessions.get("s").baseline.residuals[2].norm(dim=1)
    loudest = int(norms.argmax())
    sae.config.token_filter = TokenFilter(max_norm=float(norms.sort().values[-2]) + 1e-3)
    attach(resident, sae)
    special = [i for i, t in enumerate(llama.tokenizer(PROMPT)["input_ids"]) if t in resident.special_tokens]

    def positions(**where: object) -> set[int]:
        plan = EditPlan(edits=(make_edit(sae, 1, "add", 1.0, positions=Positions(**where)),))  # type: ignore[arg-type]
        return set(resident.apply("s", plan).outcome.effects[0].positions)

    everything = set(range(len(norms)))
    assert special
    assert positions() == everything - {loudest, *special}
    assert positions(include_sinks=True) == everything


def test_states_seen_before_are_answered_from_cache(llama, monkeypatch):
    resident = ResidentModel(llama)
    sae = random_sae(32, 1, 0)
    attach(resident, sae)
    resident.open("s", PROMPT)
    plan = EditPlan(edits=(make_edit(sae, 3, "add", 4.0),))
    first = resident.apply("s", plan)
    assert first.reused == "computed"
    assert resident.apply("s", EditPlan()).reused == "baseline"
    again = resident.apply("s", EditPlan(edits=(make_edit(sae, 5, "scale", 1.0), *plan.edits)))
    assert again.reused == "cache"
    assert torch.equal(again.outcome.logits, first.outcome.logits)
    resident.open("s", "people ask the house")  # a new prompt must not see old answers
    other = resident.apply("s", plan)
    assert other.reused == "computed"
    assert not torch.equal(other.outcome.logits, first.outcome.logits)


def test_sessions_never_see_each_other(llama):
    """Random interleavings of three people's actions equal what each would have got alone."""
    saes = [random_sae(32, layer, 1) for layer in range(4)]
    prompts = [PROMPT, PROMPT, "people ask the house of senate"]
    rng = random.Random(5)
    scripts = [
        [EditPlan(edits=tuple(random_edit(rng, saes, 5) for _ in range(2))) for _ in range(40)]
        for _ in prompts
    ]

    def run(order: list[int], resident: ResidentModel) -> list[list[torch.Tensor]]:
        answers: list[list[torch.Tensor]] = [[] for _ in prompts]
        for person, prompt in enumerate(prompts):
            if person in order:
                resident.open(f"u{person}", prompt)
        for person in order:
            number = len(answers[person])
            if number % 13 == 7:
                resident.open(f"u{person}", prompts[person])
            try:
                logits = resident.apply(f"u{person}", scripts[person][number]).outcome.logits
            except MicroscopeError:
                logits = torch.zeros(1)
            answers[person].append(logits)
        return answers

    def fresh() -> ResidentModel:
        resident = ResidentModel(llama)
        for sae in saes:
            attach(resident, sae)
        return resident

    order = [person for person in range(3) for _ in range(40)]
    rng.shuffle(order)
    together = run(order, fresh())
    for person in range(3):
        alone = run([person] * 40, fresh())[person]
        assert all(torch.equal(a, b) for a, b in zip(together[person], alone, strict=True))


def test_no_hook_is_left_and_no_weight_is_touched(llama):
    def hooks() -> list[object]:
        return [h for m in llama.model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]

    weights = {k: v.clone() for k, v in llama.model.state_dict().items()}
    before = hooks()  # transformers leaves some of its own
    resident = ResidentModel(llama)
    sae = random_sae(32, 1, 0)
    attach(resident, sae)
    resident.open("s", PROMPT)
    for strength in (-3.0, 0.5, 9.0):
        resident.apply("s", EditPlan(edits=(make_edit(sae, 2, "add", strength),)))
    assert all(torch.equal(weights[k], v) for k, v in llama.model.state_dict().items())
    assert hooks() == before


def test_features_of_a_prompt(llama):
    resident = ResidentModel(llama)
    sae = random_sae(32, 2, 3)
    name = attach(resident, sae)
    resident.open("s", PROMPT)
    x = resident.sessions.get("s").baseline.residuals[2]
    codes = sae.encode(x)
    dense = torch.zeros(len(x), 64).scatter_(1, codes.indices, codes.values)
    got = resident.read_features("s", name, indices=(5, 9))
    assert [i for i, _ in got] == [5, 9]
    torch.testing.assert_close(torch.tensor([v for _, v in got]).T, dense[:, [5, 9]])
    top = [i for i, _ in resident.read_features("s", name, top=4)]
    assert dense.amax(0)[top].tolist() == pytest.approx(dense.amax(0).topk(4).values.tolist())


def test_distributions_are_probabilities_and_kl_is_right(llama):
    base, patched = torch.randn(200), torch.randn(200)
    result = compare(base, patched, top=5, pinned=(7,))
    p, q = base.double().softmax(0), patched.double().softmax(0)
    assert result.kl == pytest.approx(float((p * (p / q).log()).sum()))
    assert result.entropy_patched == pytest.approx(float(-(q * q.log()).sum()))
    shown = {s.token for s in result.shifts}
    assert shown == {7, *p.topk(5).indices.tolist(), *q.topk(5).indices.tolist()}
    for shift in result.shifts:
        assert (shift.base, shift.patched) == pytest.approx((float(p[shift.token]), float(q[shift.token])))
    assert compare(base, base, top=3).kl == 0.0


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda r, s: r.open("s", ""), "empty_prompt"),
        (lambda r, s: r.open("s", "the " * 500), "prompt_too_long"),
        (lambda r, s: r.apply("nobody", EditPlan()), "no_session"),
        (
            lambda r, s: r.apply("s", EditPlan(edits=(make_edit(random_sae(32, 1, 77), 1),))),
            "sae_not_attached",
        ),
        (lambda r, s: r.apply("s", EditPlan(edits=(make_edit(s, 64),))), "no_such_feature"),
        (
            lambda r, s: r.apply("s", EditPlan(edits=(make_edit(s, 1, strength=float("nan")),))),
            "strength_not_finite",
        ),
        (
            lambda r, s: r.apply("s", EditPlan(edits=(make_edit(s, 1, "add", 1e38, unit_value=1e30),))),
            "not_finite",
        ),
        (lambda r, s: r.apply("s", EditPlan(), pinned=(10**6,)), "no_such_token"),
        (lambda r, s: r.read_features("s", "unknown"), "sae_not_attached"),
    ],
)
def test_bad_requests_are_refused_and_leave_the_session_working(llama, call, code):
    resident = ResidentModel(llama)
    sae = random_sae(32, 1, 0)
    attach(resident, sae)
    resident.open("s", PROMPT)
    before = resident.apply("s", EditPlan(edits=(make_edit(sae, 2, "add", 3.0),))).outcome.logits
    with pytest.raises(MicroscopeError) as caught:
        call(resident, sae)
    assert caught.value.code == code
    assert torch.equal(
        resident.apply("s", EditPlan(edits=(make_edit(sae, 2, "add", 3.0),))).outcome.logits, before
    )


def test_an_edit_at_another_site_than_its_feature_is_refused(llama):
    import msgspec

    resident = ResidentModel(llama)
    sae = random_sae(32, 1, 0)
    attach(resident, sae)
    resident.open("s", PROMPT)
    moved = msgspec.structs.replace(make_edit(sae, 1), site="resid_post.2")
    with pytest.raises(MicroscopeError) as caught:
        resident.apply("s", EditPlan(edits=(moved,)))
    assert caught.value.code == "wrong_site"


def test_attaching_checks_identity_and_model(llama, sae_folder, sae, model_folders):
    resident = ResidentModel(llama)
    with pytest.raises(MicroscopeError) as caught:
        resident.attach(sae_folder, expect="0" * 32)
    assert caught.value.code == "wrong_sae"
    assert resident.attach(sae_folder, expect=sae.config.fingerprint).config.k == 8
    other = ResidentModel(load_model(str(model_folders["qwen2"]), dtype="float32", device="cpu"))
    with pytest.raises(MicroscopeError) as caught:
        other.attach(sae_folder)
    assert caught.value.code == "wrong_model"


def test_changing_the_topmost_edit_restarts_only_there(llama, monkeypatch):
    resident = ResidentModel(llama)
    low, high = random_sae(32, 0, 0), random_sae(32, 2, 0)
    attach(resident, low), attach(resident, high)
    resident.open("s", PROMPT)
    everywhere = make_edit(low, 3, "add", 2.0)

    def late(strength: float) -> Edit:
        return make_edit(high, 4, "add", strength, positions=Positions(mode="from", start=10))

    resident.apply("s", EditPlan(edits=(everywhere, late(1.0))))
    ran = counting(type(resident.runner), monkeypatch)
    rows = len(resident.sessions.get("s").baseline)
    resident.apply("s", EditPlan(edits=(everywhere, late(2.0))))
    # the lower edit changes every row, but only the upper one moved, and it acts from position 10 on
    assert ran == [(3, rows - 10, 10, "last row")]
    ran.clear()
    resident.apply("s", EditPlan(edits=(late(2.0),)))  # without the lower one it is nearest to the baseline
    assert ran == [(3, rows - 10, 10, "last row")]
    ran.clear()
    resident.apply("s", EditPlan(edits=(everywhere, late(1.0))))
    assert ran == []


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_the_top_block_is_completed_when_an_edit_behind_it_needs_all_rows(family, model_folders):
    """Of the top block a run keeps the last row only; edits there, and readings of all positions, still see all."""
    loaded = load_model(str(model_folders[family]), dtype="float32", device="cpu")
    resident = ResidentModel(loaded)
    low, high = random_sae(32, 1, 0), random_sae(32, 3, 0)
    table = {attach(resident, sae): sae for sae in (low, high)}
    resident.open("s", PROMPT)
    ids = resident.sessions.get("s").baseline.tokens
    below = make_edit(low, 3, "add", 2.0, positions=Positions(include_sinks=True))
    moved = resident.read_positions("s", EditPlan(edits=(below,)))[1]
    top = resident.sessions.get("s").runs.popitem()[1].layers[-1]
    assert top.only_last
    assert len(top.x) == 1
    fresh = ResidentModel(loaded)
    attach(fresh, low), attach(fresh, high)
    fresh.open("s", PROMPT)
    whole = EditPlan(edits=(below, make_edit(high, 3, "add", 1e-6, positions=Positions(include_sinks=True))))
    fresh.apply("s", whole)
    assert not fresh.sessions.get("s").runs.popitem()[1].layers[-1].only_last
    assert moved == pytest.approx(fresh.read_positions("s", whole)[1], abs=1e-4)
    for strength, positions in ((1.0, Positions()), (0.5, Positions(mode="from", start=4))):
        resident.apply("s", EditPlan(edits=(below,)))
        above = make_edit(high, 5, "project", strength - 2.0, positions=positions)
        plan = EditPlan(edits=(below, above))
        expected = through_hugging_face(loaded, ids, plan.edits, table)
        torch.testing.assert_close(resident.apply("s", plan).outcome.logits, expected, rtol=1e-4, atol=1e-5)
        off = EditPlan(edits=(above,))
        expected = through_hugging_face(loaded, ids, off.edits, table)
        torch.testing.assert_close(resident.apply("s", off).outcome.logits, expected, rtol=1e-4, atol=1e-5)


def test_a_low_rank_edit_starts_at_its_lowest_module(llama, monkeypatch):
    resident = ResidentModel(llama)
    resident.open("s", PROMPT)
    adapter = random_adapter(llama, 1)
    resident.attached.adapters[adapter.fingerprint] = adapter
    ran = counting(type(resident.runner), monkeypatch)
    lowest = min(int(path.split(".")[2]) for path in adapter.factors)
    edit = Edit(kind="lora", adapter=adapter.fingerprint, strength=1.0)
    applied = resident.apply("s", EditPlan(edits=(edit,)))
    rows = len(resident.sessions.get("s").baseline)
    assert [(layer, rows, 0) for layer in range(lowest, 4)] == [call[:3] for call in ran]
    assert applied.outcome.effects[0].positions == tuple(range(rows))


def test_caches_stay_within_their_budget(llama):
    saes = [random_sae(32, layer, 1) for layer in range(4)]
    roomy, tight = ResidentModel(llama), ResidentModel(llama, cache_bytes=100_000)
    for resident in (roomy, tight):
        for sae in saes:
            attach(resident, sae)
        for name in ("a", "b", "c"):
            resident.open(name, PROMPT)
    rng = random.Random(2)
    for step in range(12):
        plan = EditPlan(edits=tuple(random_edit(rng, saes, 10) for _ in range(2)))
        got = [r.apply("abc"[step % 3], plan).outcome.logits for r in (roomy, tight)]
        torch.testing.assert_close(*got, rtol=1e-4, atol=1e-4)
    baselines = sum(tight.sessions.get(name).baseline.nbytes for name in ("a", "b", "c"))
    assert tight.sessions.nbytes <= max(100_000, baselines)
    assert roomy.sessions.nbytes > tight.sessions.nbytes


def test_a_block_that_ignores_its_patch_is_an_error_not_an_answer(model_folders, monkeypatch):
    monkeypatch.setattr(registry, "decoder_of", lambda kind: None)  # the model's own blocks, with taps
    loaded = load_model(str(model_folders["gemma2"]), dtype="float32", device="cpu")
    resident = ResidentModel(loaded)
    resident.open("s", PROMPT)
    before = resident.apply("s", EditPlan()).outcome.logits
    adapter = random_adapter(loaded, 1)
    resident.attached.adapters[adapter.fingerprint] = adapter
    for module in loaded.model.modules():
        module._forward_hooks.clear()
    plan = EditPlan(edits=(Edit(kind="lora", adapter=adapter.fingerprint, strength=1.0),))
    with pytest.raises(MicroscopeError) as caught:
        resident.apply("s", plan)
    assert caught.value.code == "taps_missing"
    ids = torch.tensor([loaded.tokenizer(PROMPT)["input_ids"]])
    with torch.no_grad():  # and the model itself is as it was
        torch.testing.assert_close(loaded.model(ids).logits[0, -1], before, rtol=1e-4, atol=1e-4)


def test_adapters_are_checked_when_attached(llama, tmp_path):
    resident = ResidentModel(llama)
    good = random_adapter(llama, 3)
    path = sorted(good.factors)[0]
    a, b = good.factors[path]
    infinite = LowRank(a * float("inf"), b)
    for name, factors, model, code in (
        ("module", {"model.layers.9.mlp.down_proj": LowRank(a, b)}, "", "no_such_module"),
        ("shape", {path: LowRank(a[:, :-1], b)}, "", "wrong_adapter_shape"),
        ("rank", {path: LowRank(a, b[:, :1])}, "", "bad_adapter"),
        ("finite", {path: infinite}, "", "bad_adapter"),
        ("model", dict(good.factors), "0" * 32, "wrong_model"),
    ):
        save_adapter(LowRankAdapter(factors, model), tmp_path / name)
        with pytest.raises(MicroscopeError) as caught:
            resident.attach_adapter(tmp_path / name)
        assert caught.value.code == code, name
    with pytest.raises(MicroscopeError) as caught:
        resident.attach_adapter(tmp_path)
    assert caught.value.code == "no_adapter"
    save_adapter(good, tmp_path / "good")
    with pytest.raises(MicroscopeError) as caught:
        resident.attach_adapter(tmp_path / "good", expect="0" * 32)
    assert caught.value.code == "wrong_adapter"
    assert resident.attach_adapter(tmp_path / "good").fingerprint == good.fingerprint
    resident.open("s", PROMPT)
    for edit, code in (
        (Edit(kind="lora", adapter="1" * 32, strength=1.0), "adapter_not_attached"),
        (Edit(kind="lora", adapter=good.fingerprint, modules=("x",), strength=1.0), "no_such_module"),
    ):
        with pytest.raises(MicroscopeError) as caught:
            resident.apply("s", EditPlan(edits=(edit,)))
        assert caught.value.code == code


def test_low_rank_edits_of_strength_zero_are_the_baseline_itself(llama):
    resident = ResidentModel(llama)
    resident.open("s", PROMPT)
    adapter = random_adapter(llama, 3)
    resident.attached.adapters[adapter.fingerprint] = adapter
    applied = resident.apply(
        "s", EditPlan(edits=(Edit(kind="lora", adapter=adapter.fingerprint, strength=0.0),))
    )
    assert applied.outcome.logits is resident.sessions.get("s").baseline.logits
