"""Random conversations with a resident model, every answer compared with a plain forward of the whole sequence.

What a session has computed so far decides where the next answer starts from. So requests of every kind follow each
other in random order, under plans of every kind of edit, among them edits that never fire, below and above others.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from microscope.live import ResidentModel
from microscope.models import LoadedModel
from microscope.params import Edit, EditPlan, Positions
from microscope.patching import LowRankAdapter
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
    stream_in,
)

PROMPTS = (PROMPT, "people ask the house", "war")
REQUESTS = int(os.environ.get("LIVE_REQUESTS", "60"))


class Conversation:
    """One session, what its model is, and how each answer is checked.

    Args:
        loaded: the model.
        seed: of what is asked.
        inside_blocks: whether some edits change weights, or what halves of blocks add.
    """

    def __init__(self, loaded: LoadedModel, seed: int, *, inside_blocks: bool = True) -> None:
        self.rng, self.loaded = random.Random(seed), loaded
        d, layers = loaded.d_model, range(loaded.n_layers)
        self.saes = [
            *(random_sae(d, layer, 1, kind=("topk", "gated")[layer % 2]) for layer in layers),
            *(random_sae(d, layer, 2, kind="jumprelu", max_norm=4.0) for layer in layers),
        ]
        self.silent = [silent_sae(d, layer, 3) for layer in layers]
        self.table = {sae.content_fingerprint(): sae for sae in (*self.saes, *self.silent)}
        self.kinds = [kind for kind in KINDS if inside_blocks or kind != "ablate_everywhere"]
        self.adapters: Sequence[LowRankAdapter] = (
            [random_adapter(loaded, seed) for seed in range(2)] if inside_blocks else []
        )
        self.resident = resident_with(loaded, list(self.table.values()), self.adapters)
        self.resident.special_tokens = frozenset()
        self.edits: list[Edit] = []
        self.said: list[int] = []
        self.open()

    def open(self) -> None:
        prompt = self.rng.choice(PROMPTS)
        self.ids = torch.tensor(self.loaded.tokenizer(prompt)["input_ids"])
        self.resident.open("s", prompt)

    def change(self) -> EditPlan:
        """Add, take away or replace an edit; sometimes start over with none."""
        if self.edits and self.rng.random() < 0.5:
            self.edits.pop(self.rng.randrange(len(self.edits)))
        if self.rng.random() < 0.05:
            self.edits.clear()
        if len(self.edits) < 4 and self.rng.random() < 0.8:
            self.edits.insert(self.rng.randrange(len(self.edits) + 1), self.edit())
        return one_splice_per_site(self.edits)

    def edit(self) -> Edit:
        if self.rng.random() < 0.35:
            sae = self.rng.choice(self.silent)
            kind = self.rng.choice(("ablate", "scale", "clamp_firing"))
            return make_edit(sae, self.rng.randrange(64), kind, 3.0)
        if self.rng.random() < 0.1:
            where = Positions(mode="set", indices=(500, len(self.ids) - 1))
            return make_edit(self.rng.choice(self.saes), 3, "add", 2.0, positions=where)
        return random_edit(self.rng, self.saes, max(2, len(self.ids)), self.adapters, self.kinds)

    def plain(self, plan: EditPlan, ids: Tensor) -> Tensor:
        return everywhere_through_hugging_face(
            self.loaded, ids, plan.edits, self.table, self.resident.attached.adapters, prompt=len(self.ids)
        )

    # --- requests ---------------------------------------------------------------------------------

    def apply(self) -> None:
        plan = self.change()
        applied = self.resident.apply("s", plan)
        close(applied.outcome.logits, self.plain(plan, self.ids)[-1])
        if self.resident.sessions.get("s").generation is not None:
            self.plan = plan

    def positions(self) -> None:
        """At every position, as the position strip shows it."""
        plan = self.change()
        _, kl = self.resident.read_positions("s", plan)
        base, patched = (self.plain(p, self.ids).double().log_softmax(1) for p in (EditPlan(), plan))
        expected = (base.exp() * (base - patched)).sum(1).clamp_min(0)
        torch.testing.assert_close(torch.tensor(kl).double(), expected, rtol=1e-3, atol=1e-6)

    def features(self) -> None:
        sae = self.rng.choice([*self.saes, *self.silent])
        layer = int(sae.config.site.rpartition(".")[2])
        stream = self.stream(layer)
        index = self.rng.randrange(64)
        wanted = self.resident.read_features("s", sae.content_fingerprint(), indices=(index,))
        codes = sae.encode(stream)
        values = (codes.values * (codes.indices == index)).sum(1)
        limit = sae.config.token_filter.max_norm
        if limit is not None:
            values = values * (stream.norm(dim=1) <= limit)
        torch.testing.assert_close(torch.tensor(wanted[0][1]), values, rtol=1e-3, atol=1e-4)

    def stream(self, layer: int) -> Tensor:
        """The residual stream behind a block of the untouched model, by a hook."""
        seen: list[Tensor] = []
        block = self.loaded.model.get_submodule(f"{self.loaded.family.blocks}.{layer}")
        handle = block.register_forward_hook(lambda _module, _inputs, output: seen.append(stream_in(output)))
        try:
            with torch.no_grad():
                self.loaded.model(self.ids[None], use_cache=False)
        finally:
            handle.remove()
        return seen[0][0].float()

    def begin(self) -> None:
        self.plan, self.said = self.change(), []
        self.base: list[int] = []
        self.resident.start_generation("s", self.plan, max_tokens=5)

    def write(self) -> None:
        """Each column's token is the likeliest, or as likely, and as probable as the plain model says."""
        if self.resident.sessions.get("s").generation is None:
            self.begin()
        step = self.resident.next_tokens("s")
        for piece, said, plan in ((step.base, self.base, EditPlan()), (step.patched, self.said, self.plan)):
            if piece is None:
                continue
            logits = self.plain(plan, torch.cat((self.ids, torch.tensor(said, dtype=torch.long))))[-1]
            probabilities = logits.double().softmax(0)
            assert piece.probability == pytest.approx(float(probabilities[piece.token]), rel=1e-3)
            assert piece.probability == pytest.approx(float(probabilities.max()), rel=1e-3)
            said.append(piece.token)


def close(ours: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * max(1.0, float(plain.abs().max())))


def test_every_answer_of_a_random_conversation_is_what_the_plain_model_says(tiny: LoadedModel) -> None:
    """LIVE_REQUESTS=1000 looks longer."""
    talk = Conversation(tiny, seed=11)
    requests = (talk.apply, talk.positions, talk.features, talk.write, talk.begin)
    for number in range(REQUESTS):
        request = talk.rng.choices(requests, weights=(4, 4, 1, 3, 1))[0]
        try:
            request()
        except Exception as error:
            raise AssertionError(f"request {number}, {request.__name__}: {talk.edits}") from error
        if talk.rng.random() < 0.05:
            talk.open()


@pytest.mark.parametrize("last", [False, True])
def test_positions_after_an_edit_that_never_fires_above_one_that_does(llama: LoadedModel, last: bool) -> None:
    """Its run is the one below it, whose top block was computed at the last position alone."""
    resident = ResidentModel(llama)
    firing, silent = random_sae(32, 0, 1), silent_sae(32, 3 if last else 2, 3)
    for sae in (firing, silent):
        attach(resident, sae)
    resident.open("s", PROMPT)
    one = make_edit(firing, 1, "add", 5.0, positions=Positions(mode="from", start=1))
    never = make_edit(silent, 1, "ablate")
    alone = resident.read_positions("s", EditPlan(edits=(one,)))[1]
    assert max(alone) > 0
    for kind in ("positions", "apply"):
        if kind == "apply":
            resident.open("s", PROMPT)
            resident.apply("s", EditPlan(edits=(one,)))
            resident.apply("s", EditPlan(edits=(one, never)))
        assert resident.read_positions("s", EditPlan(edits=(one, never)))[1] == alone
        assert resident.read_positions("s", EditPlan(edits=(never,)))[1] == [0.0] * len(alone)
