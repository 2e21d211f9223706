"""Bundles while text is generated: token by token what the definitions say, however ``generate`` is called.

The oracle runs the whole text anew for every token, with hooks that share no code with the loader.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, StaticCache

from microscope.live import ResidentModel
from microscope.models import LoadedModel, load_model
from microscope.params import Edit, EditPlan, PatchExportParams, Positions
from microscope.patching.export import export_patch
from microscope.patching.plan_file import PatchFile, write_patch
from microscope.sae import SparseAutoencoder, save_sae
from tests.live_rig import make_edit, random_sae, through_hugging_face

MODES = {
    "all": Positions(include_sinks=True),
    "from": Positions(mode="from", start=9, include_sinks=True),
    "set": Positions(mode="set", indices=(2, 13, 15), include_sinks=True),
    "generated": Positions(mode="generated", include_sinks=True),
}
LONG = torch.randint(3, 150, (1, 12), generator=torch.Generator().manual_seed(1))
SHORT = torch.randint(3, 150, (1, 5), generator=torch.Generator().manual_seed(2))
NEW = 7
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
LOGITS = {"return_dict_in_generate": True, "output_logits": True}


class Bundle:
    """A tiny model with a bundle on it, and what the plan means by the oracle."""

    def __init__(
        self, folder: Path, model: Path, positions: Positions, kind: str = "add", **rest: Any
    ) -> None:
        self.loaded: LoadedModel = load_model(str(model), dtype="float32", device="cpu")
        self.sae: SparseAutoencoder = random_sae(32, 2, 1)
        save_sae(self.sae, folder / "sae")
        self.edit: Edit = make_edit(self.sae, 5, kind, 9.0, positions=positions, **rest)
        self.plan = EditPlan(edits=(self.edit,))
        file = folder / "patch.json"
        saes = {self.sae.content_fingerprint(): str(folder / "sae")}
        write_patch(PatchFile(plan=self.plan, model=str(model), saes=saes), file)
        self.folder = folder / "bundle"
        export_patch(PatchExportParams(patch=str(file), out=str(self.folder), target="bundle", device="cpu"))
        spec = importlib.util.spec_from_file_location("load_patch", self.folder / "load_patch.py")
        assert spec is not None
        assert spec.loader is not None
        loader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loader)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.plain = self.model.generate
        self.patch = loader.attach(self.model, self.folder)

    def next_logits(self, ids: torch.Tensor, prompt: int) -> torch.Tensor:
        """Logits ``[vocabulary]`` behind ids ``[tokens]`` of which the first ``prompt`` are the prompt."""
        table = {self.sae.content_fingerprint(): self.sae}
        return through_hugging_face(self.loaded, ids, self.plan.edits, table, prompt=prompt)

    def greedy(self, prompt: torch.Tensor) -> list[torch.Tensor]:
        """Logits of the oracle's continuation, token by token."""
        ids, found = prompt[0], []
        for _ in range(NEW):
            found.append(self.next_logits(ids, prompt.shape[1]))
            ids = torch.cat([ids, found[-1].argmax()[None]])
        return found

    def text(self, prompt: torch.Tensor) -> list[int]:
        """The oracle's continuation."""
        return [int(logits.argmax()) for logits in self.greedy(prompt)]

    def log_probability(self, ids: torch.Tensor, prompt: int) -> float:
        """Of what follows the prompt."""
        steps = range(prompt, len(ids))
        return sum(float(self.next_logits(ids[:n], prompt).log_softmax(0)[ids[n]]) for n in steps)


@pytest.fixture
def make(tmp_path, model_folders) -> Callable[..., Bundle]:
    def build(mode: str, family: str = "llama", **rest: Any) -> Bundle:
        return Bundle(tmp_path, model_folders[family], MODES[mode], **rest)

    return build


def padded_batch() -> dict[str, torch.Tensor]:
    pads = torch.zeros(1, LONG.shape[1] - SHORT.shape[1], dtype=torch.long)
    mask = torch.ones(2, LONG.shape[1], dtype=torch.long)
    mask[0, : pads.shape[1]] = 0
    return {"input_ids": torch.cat([torch.cat([pads, SHORT], 1), LONG]), "attention_mask": mask}


HOW = {
    "cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 4},
    "chunks into a static cache": {"prefill_chunk_size": 5, "cache_implementation": "static"},
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("mode", MODES)
def test_one_prompt_or_a_padded_batch_says_what_the_definitions_say(make, mode, family):
    """Every token's logits, not only the one that wins."""
    made = make(mode, family)
    wanted = [made.greedy(SHORT), made.greedy(LONG)]
    single = {"input_ids": LONG, "attention_mask": torch.ones_like(LONG)}

    def differ(found: list[torch.Tensor]) -> float:
        """Largest difference of logits ``[steps, 1 or 2, vocabulary]`` from the oracle's."""
        logits = torch.stack(found)
        rows = wanted[-logits.shape[1] :]
        return max(float((logits[:, i] - torch.stack(row)).abs().max()) for i, row in enumerate(rows))

    for name, how in HOW.items():
        for inputs in (single, padded_batch()):
            out = made.model.generate(**inputs, **GREEDY, **LOGITS, **how)
            assert differ(out.logits) <= 2e-4, name
    made.patch.remove()
    assert made.model.generate == made.plain
    assert differ(made.model.generate(**single, **GREEDY, **LOGITS).logits) > 0.05, "it proves nothing"


@pytest.mark.parametrize("mode", MODES)
def test_the_text_is_that_of_the_live_path(make, mode):
    made = make(mode)
    resident = ResidentModel(made.loaded)
    resident.attach(str(made.folder.parent / "sae"))
    resident.open("s", "the state of union is strong")
    resident.start_generation("s", made.plan, max_tokens=NEW)
    live = []
    for _ in range(NEW):
        step = resident.next_tokens("s")
        if step.patched is None or step.ended == "end_of_text":
            break
        live.append(step.patched.token)
    ids = made.loaded.tokenizer("the state of union is strong", return_tensors="pt")["input_ids"]
    said = made.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0)  # fmt: skip
    assert said[0, ids.shape[1] :].tolist()[: len(live)] == live
    assert live


@pytest.mark.parametrize(
    "how", [{"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 3, "use_cache": False}]
)
@pytest.mark.parametrize("mode", MODES)
def test_beams_have_the_probabilities_of_the_definitions(make, mode, how):
    """Rows are expanded, reordered and of prompts of different lengths."""
    made = make(mode)
    out = made.model.generate(
        **padded_batch(),
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
        **how,
    )
    width, several = LONG.shape[1], how.get("num_return_sequences", 1)
    for row, (ids, score) in enumerate(zip(out.sequences, out.sequences_scores, strict=True)):
        prompt = (SHORT, LONG)[row // several].shape[1]
        wanted = made.log_probability(ids[width - prompt :], prompt)
        assert float(score) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_drafts_are_judged_at_their_own_positions(make, mode, model_folders):
    made = make(mode)
    wanted = made.text(LONG)
    ones = torch.ones_like(LONG)
    looked_up = made.model.generate(LONG, attention_mask=ones, prompt_lookup_num_tokens=3, **GREEDY)
    assert looked_up[0, LONG.shape[1] :].tolist() == wanted
    assistant = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32).eval()
    for drafter in (assistant, made.model):
        said = made.model.generate(LONG, attention_mask=ones, assistant_model=drafter, **GREEDY)
        assert said[0, LONG.shape[1] :].tolist() == wanted


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_loop_of_ones_own(make, mode, name):
    """The cache by either of its names, in one go and token by token, as plain or static cache."""
    made = make(mode)
    wanted = made.text(LONG)

    @torch.no_grad()
    def loop(first: dict[str, Any]) -> list[int]:
        out = made.model(input_ids=LONG, **first)
        said: list[int] = []
        for _ in range(NEW):
            said.append(int(out.logits[0, -1].argmax()))
            past = first.get(name) or out.past_key_values
            out = made.model(input_ids=torch.tensor([said[-1:]]), **{name: past})
        return said

    assert loop({"use_cache": True}) == wanted
    static = StaticCache(config=made.model.config, max_cache_len=64)
    assert loop({name: static}) == wanted


def test_what_is_prompt_and_what_is_generated_is_asked_for_where_it_cannot_be_known(make):
    made = make("generated")
    text = torch.cat([LONG, SHORT], 1)
    with torch.no_grad():
        past = made.model(LONG, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="prompt_length"):
            made.model(SHORT, past_key_values=past)
        with pytest.raises(ValueError, match="prompt_length"):
            made.model(text)  # a loop without a cache looks like this
        made.patch.prompt_length = LONG.shape[1]
        whole = made.model(text).logits[0, -1]
        past = made.model(LONG, use_cache=True).past_key_values
        behind = made.model(SHORT, past_key_values=past).logits[0, -1]
    wanted = made.next_logits(text[0], LONG.shape[1])
    torch.testing.assert_close(whole, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(behind, wanted, rtol=0, atol=1e-4)


def test_embedded_prompts(make, tmp_path, model_folders):
    made = make("from")
    embedded = made.model.get_input_embeddings()(LONG)
    mask = torch.ones_like(LONG)
    for cached in (True, False):  # which transformers caches all the same
        said = made.model.generate(inputs_embeds=embedded, attention_mask=mask, use_cache=cached, **GREEDY)
        assert said[0, -NEW:].tolist() == made.text(LONG)
    sparing = tmp_path / "sparing"
    sparing.mkdir()
    other = Bundle(sparing, model_folders["llama"], Positions())
    with pytest.raises(ValueError, match="special tokens"):
        other.model.generate(inputs_embeds=embedded, attention_mask=mask, **GREEDY)


class _Sealed:
    """A cache that does not say how much is in it."""


def test_what_cannot_be_placed_is_refused(make):
    made = make("from")
    with pytest.raises(ValueError, match="cache of type _Sealed"):
        made.model(LONG, past_key_values=_Sealed())
    past = made.model(LONG, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="attention_mask has 5 columns"):
        made.model(SHORT, past_key_values=past, attention_mask=torch.ones_like(SHORT))
    with pytest.raises(ValueError, match="attention_mask"):
        made.model(LONG, attention_mask=torch.ones(1, 1, 12, 12, dtype=torch.bool))
    with pytest.raises(ValueError, match="guidance_scale"):
        made.model.generate(LONG, guidance_scale=2.0, **GREEDY)
    with pytest.raises(ValueError, match="a part of it"):
        made.model.model(LONG)
