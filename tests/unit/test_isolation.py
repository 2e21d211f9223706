"""One person's edits reach nobody else, whatever the order, the names and the failures.

An answer given among others is compared, byte by byte, with the same person's answer given alone; and a part of them
with what the plain model says.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence

import pytest
import torch

from microscope.errors import MicroscopeError
from microscope.live import ResidentModel, Step
from microscope.live import resident as resident_module
from microscope.models import LoadedModel
from microscope.params import Edit, EditPlan, Positions
from microscope.patching import LowRankAdapter, program
from microscope.sae import SparseAutoencoder
from tests.live_rig import (
    KINDS,
    PROMPT,
    attach,
    everywhere_through_hugging_face,
    make_edit,
    one_splice_per_site,
    random_adapter,
    random_edit,
    random_sae,
    resident_with,
    silent_sae,
)

PROMPTS = ("people ask the house", "people ask the senate", "war")
# Names that a prefix, a suffix or a careless join would take for one another.
COLLIDING = ("u1", "u10", "u1-x", "u1:")
OPERATIONS = int(os.environ.get("ISOLATION_OPERATIONS", "2500"))
Action = tuple[str, object]
Answer = object


def weights_digest(loaded: LoadedModel) -> str:
    digest = hashlib.sha256()
    for _, weight in sorted(loaded.model.state_dict().items()):
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def hooks(loaded: LoadedModel) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules()]


@pytest.fixture(scope="module")
def saes() -> list[SparseAutoencoder]:
    firing = [random_sae(32, layer, seed) for layer in range(4) for seed in (1, 2)]
    return [*firing, *(silent_sae(32, layer, 3) for layer in range(4))]


@pytest.fixture(scope="module")
def adapters(llama) -> list[LowRankAdapter]:
    return [random_adapter(llama, seed) for seed in range(2)]


@pytest.fixture
def fresh(llama, saes, adapters):
    return lambda: resident_with(llama, saes, adapters)


def script(
    rng: random.Random, saes: Sequence[SparseAutoencoder], adapters: Sequence[LowRankAdapter], length: int
) -> list[Action]:
    """What one person does: prompts, edits added, changed, switched, read, texts begun, written on, broken off."""
    edits: list[Edit] = []
    actions: list[Action] = [("open", rng.choice(PROMPTS))]
    while len(actions) < length:
        dice = rng.random()
        if dice < 0.02:
            actions.append(("open", rng.choice(PROMPTS)))
        elif dice < 0.03:
            actions.append(("close", None))
        elif dice < 0.05:
            actions.append(("absurd", rng.choice(saes)))
        elif dice < 0.09:
            actions.append(("begin", (rng.randrange(99), rng.choice((0.0, 1.0)), one_splice_per_site(edits))))
        elif dice < 0.30:
            actions.append(("write", None))
        elif dice < 0.34:
            actions.append(("features", rng.choice(saes)))
        else:
            if edits and rng.random() < 0.5:
                edits.pop(rng.randrange(len(edits)))
            if len(edits) < 3:
                edits.append(random_edit(rng, saes, 5, adapters, KINDS))
            kind = "positions" if rng.random() < 0.25 else "apply"
            actions.append((kind, one_splice_per_site(edits)))
    return actions


def act(resident: ResidentModel, name: str, action: Action) -> Answer:
    """The bytes of an answer, or the code of a refusal."""
    kind, what = action
    try:
        match kind:
            case "open":
                assert isinstance(what, str)
                resident.open(name, what)
                return resident.sessions.get(name).baseline.logits.numpy().tobytes()
            case "close":
                resident.close(name)
                return None
            case "absurd":
                assert isinstance(what, SparseAutoencoder)
                resident.apply(name, EditPlan(edits=(make_edit(what, 1, "add", 1e38, unit_value=1e30),)))
            case "begin":
                assert isinstance(what, tuple)
                seed, temperature, plan = what
                resident.start_generation(name, plan, seed=seed, temperature=temperature, max_tokens=30)
                return None
            case "write":
                step: Step = resident.next_tokens(name)
                return step
            case "features":
                assert isinstance(what, SparseAutoencoder)
                return resident.read_features(name, what.content_fingerprint(), top=3)
            case "positions":
                assert isinstance(what, EditPlan)
                return resident.read_positions(name, what)[1]
            case "apply":
                assert isinstance(what, EditPlan)
                applied = resident.apply(name, what)
                effects = [(e.positions, e.max_delta) for e in applied.outcome.effects]
                return applied.outcome.logits.numpy().tobytes(), effects, applied.baseline
    except MicroscopeError as error:
        return error.code
    return None


def interleaved(rng: random.Random, scripts: Mapping[str, list[Action]]) -> Iterator[tuple[str, Action]]:
    left = {name: iter(actions) for name, actions in scripts.items()}
    while left:
        name = rng.choice(sorted(left))
        action = next(left[name], None)
        if action is None:
            del left[name]
        else:
            yield name, action


def differences(seed: int, fresh, saes, adapters, length: int) -> tuple[int, int]:
    """Operations, and how many answers differ from those each person gets alone."""
    rng = random.Random(seed)
    people = COLLIDING[: rng.randrange(2, 5)]
    scripts = {name: script(rng, saes, adapters, length) for name in people}
    resident = fresh()
    together: dict[str, list[Answer]] = {name: [] for name in people}
    for name, action in interleaved(rng, scripts):
        together[name].append(act(resident, name, action))
    wrong = 0
    for name in people:
        alone = fresh()
        answers = [act(alone, name, action) for action in scripts[name]]
        wrong += sum(a != b for a, b in zip(answers, together[name], strict=True))
        check_against_the_plain_model(alone, scripts[name], answers, saes, start=seed)
    return len(people) * length, wrong


def check_against_the_plain_model(
    resident: ResidentModel,
    actions: Sequence[Action],
    answers: Sequence[Answer],
    saes: Sequence[SparseAutoencoder],
    start: int,
) -> None:
    """Every eighth distribution and position strip, beginning somewhere else in every run."""
    table = {sae.content_fingerprint(): sae for sae in saes}
    loaded, ids = resident.loaded, torch.empty(0, dtype=torch.long)

    def plain(plan: EditPlan) -> torch.Tensor:
        return everywhere_through_hugging_face(loaded, ids, plan.edits, table, resident.attached.adapters)

    for number, ((kind, what), answer) in enumerate(zip(actions, answers, strict=True)):
        if kind == "open":
            ids = torch.tensor(loaded.tokenizer(what)["input_ids"])
        if (number + start) % 8 or not isinstance(what, EditPlan) or isinstance(answer, str):
            continue
        if kind == "apply":
            assert isinstance(answer, tuple)
            logits = torch.frombuffer(bytearray(answer[0]), dtype=torch.float32)
            torch.testing.assert_close(logits, plain(what)[-1], rtol=1e-4, atol=1e-4)
        if kind == "positions":
            base, patched = (plain(p).double().log_softmax(1) for p in (EditPlan(), what))
            kl = (base.exp() * (base - patched)).sum(1).clamp_min(0)
            torch.testing.assert_close(torch.tensor(answer).double(), kl, rtol=1e-3, atol=1e-6)


def test_interleaved_operations_are_what_each_gets_alone(llama, fresh, saes, adapters):
    """Also: not one weight changed, not one hook was left. ISOLATION_OPERATIONS=10000 looks longer."""
    before = weights_digest(llama), hooks(llama)
    done, seed = 0, 0
    while done < OPERATIONS:
        operations, wrong = differences(seed, fresh, saes, adapters, 210)
        assert wrong == 0, f"seed {seed}: {wrong} answers differ"
        done, seed = done + operations, seed + 1
    assert (weights_digest(llama), hooks(llama)) == before


def test_the_comparison_notices_when_caches_forget_the_fingerprint(fresh, saes, adapters, monkeypatch):
    """A mutation of the key must be caught, or the test above proves nothing."""
    monkeypatch.setattr(resident_module, "plan_fingerprint", lambda edits: "same")

    def answers(resident: ResidentModel) -> list[Answer]:
        rng = random.Random(4)
        return [act(resident, "u1", action) for action in script(rng, saes, adapters, 60)]

    mutated = answers(fresh())
    monkeypatch.undo()
    assert mutated != answers(fresh())


@pytest.mark.parametrize("key", ["site_keys", "block_keys"])
def test_the_comparison_notices_when_a_layers_key_forgets_its_edits(fresh, saes, adapters, monkeypatch, key):
    real = resident_module.bind

    def forgetful(*args, **kwargs):
        bound = real(*args, **kwargs)
        return program.Program(**{**vars(bound), key: ("",) * len(getattr(bound, key))})

    def answers(resident: ResidentModel) -> list[Answer]:
        rng = random.Random(4)
        return [act(resident, "u1", action) for action in script(rng, saes, adapters, 80)]

    right = answers(fresh())
    monkeypatch.setattr(resident_module, "bind", forgetful)
    assert answers(fresh()) != right


def test_no_pass_computes_rows_of_two_people(fresh, saes, adapters, monkeypatch):
    """What is never in one batch cannot leak within it, nor change another's rounding."""
    resident = fresh()
    runner, batches = type(resident.runner), []
    for name in ("block", "last_row"):
        original = getattr(runner, name)

        def counted(self, layer, x, *args, original=original, **kwargs):
            batches.append(len(x))
            return original(self, layer, x, *args, **kwargs)

        monkeypatch.setattr(runner, name, counted)
    rng = random.Random(8)
    scripts = {name: script(rng, saes, adapters, 40) for name in COLLIDING}
    for name, action in interleaved(rng, scripts):
        act(resident, name, action)
    assert len(batches) > 100
    assert set(batches) == {1}


def test_a_neighbours_baseline_is_the_same_before_during_and_after(fresh, saes):
    resident = fresh()
    for name in ("a", "b"):
        resident.open(name, PROMPT)
    neighbour = resident.sessions.get("b").baseline
    states = [*neighbour.residuals, *itertools.chain(*neighbour.past), neighbour.logits]
    before = [t.clone() for t in states]
    rng = random.Random(1)
    for _ in range(30):
        resident.apply("a", EditPlan(edits=tuple(random_edit(rng, saes, 5) for _ in range(2))))
        assert resident.apply("b", EditPlan()).outcome.logits is neighbour.logits
    assert all(torch.equal(a, b) for a, b in zip(before, states, strict=True))


class Injected(Exception):
    """What breaks at a tap."""


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_failure_at_any_tap_leaves_everybody_as_they_were(family, model_folders, monkeypatch):
    """Blocks, encoders, low-rank changes, the span, the head: each breaks once at each of its calls."""
    from microscope.models import load_model
    from microscope.models.runner import BlockPatch
    from microscope.patching.apply import SiteEdits

    loaded = load_model(str(model_folders[family]), dtype="float32", device="cpu")
    sae, adapter = random_sae(32, 1, 1), random_adapter(loaded, 0)
    resident = ResidentModel(loaded)
    attach(resident, sae)
    resident.attached.adapters.update({adapter.fingerprint: adapter})
    for name in ("a", "b"):
        resident.open(name, PROMPT)
    edits = (
        make_edit(sae, 2, "scale", 3.0),
        make_edit(sae, 5, "ablate_everywhere"),
        Edit(kind="lora", adapter=adapter.fingerprint, strength=1.0),
    )
    expected = {
        name: resident.apply(name, EditPlan(edits=edits)).outcome.logits.clone() for name in ("a", "b")
    }
    base = resident.sessions.get("a").baseline.logits.clone()
    runner = type(resident.runner)
    taps = [
        (runner, "block"),
        (runner, "head"),
        (type(sae), "encode"),
        (SiteEdits, "delta"),
        (BlockPatch, "written"),
        (BlockPatch, "added"),
        (importlib.import_module("microscope.live.replay"), "embed"),
    ]
    broken = 0
    for owner, name in taps:
        original = getattr(owner, name)
        for call in range(3):
            count = itertools.count()

            def failing(*args, original=original, count=count, call=call, **kwargs):
                if next(count) == call:
                    raise Injected
                return original(*args, **kwargs)

            state = resident.sessions.get("a")
            state.outcomes.clear(), state.runs.clear()
            for layer in state.baseline.layers:
                layer.codes.clear()
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, failing)
                try:
                    resident.apply("a", EditPlan(edits=edits))
                except Injected:
                    broken += 1
            assert torch.equal(resident.apply("a", EditPlan()).outcome.logits, base)
            for person, logits in expected.items():
                resident.sessions.get(person).outcomes.clear()
                again = resident.apply(person, EditPlan(edits=edits)).outcome.logits
                torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-6)
    assert broken >= 12


def test_what_is_not_finite_stays_with_its_row_and_session(fresh, saes):
    resident = fresh()
    for name in ("a", "b"):
        resident.open(name, PROMPT)
    plan = EditPlan(edits=(make_edit(saes[0], 2, "scale", 3.0),))
    before = resident.apply("b", plan).outcome.logits.clone()
    absurd = make_edit(
        saes[0], 1, "add", 1e38, unit_value=1e30, positions=Positions(mode="set", indices=(3,))
    )
    with pytest.raises(MicroscopeError) as caught:
        resident.apply("a", EditPlan(edits=(absurd,)))
    assert caught.value.code == "not_finite"
    assert "Lower the strength" in caught.value.hint
    resident.sessions.get("b").outcomes.clear()
    resident.sessions.get("b").runs.clear()
    assert torch.equal(resident.apply("b", plan).outcome.logits, before)
    torch.testing.assert_close(resident.apply("a", plan).outcome.logits, before, rtol=1e-5, atol=1e-6)
    # an infinite change where the edit may not act is no change
    beyond = make_edit(saes[0], 1, "add", 1e38, unit_value=1e30, positions=Positions(mode="from", start=99))
    assert (
        resident.apply("a", EditPlan(edits=(beyond,))).outcome.logits
        is resident.sessions.get("a").baseline.logits
    )
