"""Continuations, base and patched, against the plain model run anew for every token."""

from __future__ import annotations

import random

import pytest
import torch

from microscope.errors import MicroscopeError
from microscope.live import ResidentModel, Step
from microscope.params import Edit, EditPlan, Positions
from tests.live_rig import (
    PROMPT,
    attach,
    make_edit,
    one_splice_per_site,
    random_adapter,
    random_edit,
    random_sae,
    through_hugging_face,
)


def text_of(steps: list[Step], column: str) -> list[int]:
    pieces = [getattr(step, column) for step in steps]
    return [piece.token for piece in pieces if piece is not None]


def generate(resident: ResidentModel, plan: EditPlan, count: int = 12, **how: object) -> list[Step]:
    resident.start_generation("s", plan, max_tokens=count, **how)  # type: ignore[arg-type]
    steps = [resident.next_tokens("s")]
    while not steps[-1].ended:
        steps.append(resident.next_tokens("s"))
    return steps


@pytest.fixture
def resident(llama) -> ResidentModel:
    resident = ResidentModel(llama)
    resident.special_tokens = frozenset()
    resident.open("s", PROMPT)
    return resident


def test_every_token_is_what_the_plain_model_says_under_the_plan_of_the_moment(tiny):
    """Plans of all kinds change while the text grows; each token's logits equal a whole forward with hooks."""
    rng = random.Random(3)
    resident = ResidentModel(tiny)
    resident.special_tokens = frozenset()
    resident.open("s", PROMPT)
    kinds = ("topk", "jumprelu", "gated", "topk")
    saes = [random_sae(32, layer, 1, kind=kind) for layer, kind in enumerate(kinds)]
    table = {attach(resident, sae): sae for sae in saes}
    adapters = [random_adapter(tiny, seed) for seed in range(2)]
    resident.attached.adapters.update({adapter.fingerprint: adapter for adapter in adapters})
    prompt = tiny.tokenizer(PROMPT)["input_ids"]
    kinds = ("scale", "clamp_firing", "clamp_all", "add", "project", "splice", "ablate_everywhere")

    def plan() -> EditPlan:
        return one_splice_per_site([random_edit(rng, saes, 30, adapters, kinds) for _ in range(3)])

    current = plan()
    resident.start_generation("s", current, max_tokens=14)
    said: list[int] = []
    for _ in range(14):
        if rng.random() < 0.4:
            current = plan()
            resident.apply("s", current)
        ids = torch.tensor([*prompt, *said])
        want = through_hugging_face(
            tiny, ids, current.edits, table, resident.attached.adapters, prompt=len(prompt)
        )
        step = resident.next_tokens("s")
        if step.patched is None:
            break
        assert step.patched.token == int(want.argmax())
        assert step.patched.probability == pytest.approx(float(want.softmax(0).max()), rel=1e-3)
        said.append(step.patched.token)
    assert len(said) > 3


def test_the_base_column_is_the_models_own_greedy_continuation(tiny):
    resident = ResidentModel(tiny)
    resident.open("s", PROMPT)
    sae = random_sae(32, 1, 0)
    attach(resident, sae)
    steps = generate(resident, EditPlan(edits=(make_edit(sae, 3, "add", 9.0),)))
    ids = tiny.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        own = tiny.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
    expected = own[0, ids.shape[1] :].tolist()
    assert text_of(steps, "base") == expected[: len(text_of(steps, "base"))]
    assert len(text_of(steps, "base")) == len(expected)


def test_an_empty_plan_says_the_same_in_both_columns(resident, llama):
    for how in ({}, {"temperature": 1.0, "seed": 5}):
        steps = generate(resident, EditPlan(), **how)
        assert [step.base for step in steps] == [step.patched for step in steps]
    tokens = text_of(steps, "base")
    said = "".join(step.base.text for step in steps if step.base)
    assert said == llama.tokenizer.decode(tokens[:-1] if steps[-1].ended == "end_of_text" else tokens)


def test_equal_seeds_say_the_same_and_others_do_not(resident):
    sae = random_sae(32, 1, 0)
    attach(resident, sae)
    plan = EditPlan(edits=(make_edit(sae, 3, "add", 3.0),))
    texts = [text_of(generate(resident, plan, temperature=1.0, seed=seed), "patched") for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_sampling_follows_the_softmax(resident):
    logits = resident.sessions.get("s").baseline.logits
    want = (logits.double() / 0.7).softmax(0)
    drawn = torch.zeros(len(want), dtype=torch.float64)
    for seed in range(600):
        resident.start_generation("s", EditPlan(), temperature=0.7, seed=seed, max_tokens=1)
        drawn[resident.next_tokens("s").base.token] += 1
    top = want.topk(3).indices
    spread = (want[top] * (1 - want[top]) / 600).sqrt()
    assert ((drawn[top] / 600 - want[top]).abs() < 4.5 * spread).all()


def test_edits_of_generated_positions_leave_the_prompt_alone(resident):
    sae = random_sae(32, 1, 0)
    attach(resident, sae)
    edit = make_edit(sae, 3, "add", 30.0, positions=Positions(mode="generated"))
    plan = EditPlan(edits=(edit,))
    assert resident.apply("s", plan).reused == "baseline"
    steps = generate(resident, plan, 8)
    assert steps[0].base == steps[0].patched  # the first token follows from the prompt alone
    assert text_of(steps, "base") != text_of(steps, "patched")


def test_nothing_of_a_generation_reaches_the_prompts_states(resident):
    sae = random_sae(32, 1, 0)
    attach(resident, sae)
    baseline = resident.sessions.get("s").baseline
    before = [t.clone() for kv in baseline.past for t in kv]
    generate(resident, EditPlan(edits=(make_edit(sae, 3, "add", 9.0),)))
    assert all(
        torch.equal(a, b) for a, b in zip(before, (t for kv in baseline.past for t in kv), strict=True)
    )
    first = generate(resident, EditPlan())
    generate(resident, EditPlan(edits=(make_edit(sae, 5, "clamp_all", 4.0),)))
    assert generate(resident, EditPlan()) == first


def test_endings(resident, llama):
    assert generate(resident, EditPlan(), 3)[-1].ended == "tokens"
    room = resident.max_context - len(resident.sessions.get("s").baseline)
    resident.loaded.config.eos_token_id, kept = None, resident.loaded.config.eos_token_id
    try:
        steps = generate(resident, EditPlan(), 4000)
    finally:
        resident.loaded.config.eos_token_id = kept
    assert steps[-1].ended in ("context", "end_of_text")
    assert len(steps) <= room
    first = generate(resident, EditPlan(), 1)[0].base
    resident.loaded.config.eos_token_id = first.token
    try:
        ended = generate(resident, EditPlan(), 9)
    finally:
        resident.loaded.config.eos_token_id = kept
    assert [step.ended for step in ended] == ["end_of_text"]
    assert ended[0].base.text == ""


def test_what_is_impossible_is_refused(resident):
    sae = random_sae(32, 1, 0)
    attach(resident, sae)
    for how in ({"seed": -1}, {"temperature": -0.5}, {"temperature": float("nan")}, {"max_tokens": 0}):
        with pytest.raises(MicroscopeError) as caught:
            resident.start_generation("s", EditPlan(), **how)
        assert caught.value.code == "bad_generation"
    with pytest.raises(MicroscopeError) as caught:
        resident.next_tokens("s")
    assert caught.value.code == "no_generation"
    resident.open("full", " ".join(["the"] * resident.max_context))
    with pytest.raises(MicroscopeError) as caught:
        resident.start_generation("full", EditPlan())
    assert caught.value.code == "prompt_too_long"
    absurd = make_edit(sae, 1, "add", 1e38, unit_value=1e30, positions=Positions(mode="generated"))
    resident.start_generation("s", EditPlan(edits=(absurd,)))
    resident.next_tokens("s")
    with pytest.raises(MicroscopeError) as caught:
        resident.next_tokens("s")
    assert caught.value.code == "not_finite"
    assert resident.sessions.get("s").generation is None


def test_positions_move_by_the_kl_of_the_whole_forward(resident, llama):
    sae = random_sae(32, 2, 1)
    attach(resident, sae)
    edit: Edit = make_edit(sae, 3, "add", 4.0, positions=Positions(mode="from", start=6))
    _, kl = resident.read_positions("s", EditPlan(edits=(edit,)))
    ids = torch.tensor(llama.tokenizer(PROMPT)["input_ids"])
    assert len(kl) == len(ids)
    assert kl[:6] == [0.0] * 6
    for end in (7, len(ids)):
        base = through_hugging_face(llama, ids[:end], (), {}).double().log_softmax(0)
        patched = (
            through_hugging_face(llama, ids[:end], (edit,), {edit.sae_needed: sae}).double().log_softmax(0)
        )
        assert kl[end - 1] == pytest.approx(float((base.exp() * (base - patched)).sum()), rel=1e-3)
    assert resident.read_positions("s", EditPlan())[1] == [0.0] * len(ids)
