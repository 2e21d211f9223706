"""One token filter per SAE, wherever it is used, also when it came from files that state none."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from microscope.activations import BOS, OVERFLOW, SPECIAL, Recording, record
from microscope.activations.token_filters import filter_on_model, kept_rows
from microscope.errors import MicroscopeError
from microscope.evaluation import compare, evaluate
from microscope.evaluation.run import summarise
from microscope.features import FeatureAnalyzer, analyse
from microscope.formats import export_sae, import_sae
from microscope.live import ResidentModel
from microscope.models import LoadedModel, load_model
from microscope.params import (
    AnalyseParams,
    CompareParams,
    Edit,
    EditPlan,
    EvaluateParams,
    ExportParams,
    ImportParams,
    TraceParams,
    TrainParams,
)
from microscope.patching.plan_file import PatchFile, load_parts
from microscope.sae import SparseAutoencoder, TokenFilter, load_sae, save_sae
from microscope.training import train
from tests.tiny_models import make_model

SITE = "resid_post.2"
PROMPT = "the state of the union is strong and the people ask congress to pass a budget"


def recorded(model: Path, corpus: Path, out: Path, **more: object) -> Path:
    fields = {"layers": (2,), "tokens": 4000, "context_length": 16, "held_out": 0.3} | more
    record(
        TraceParams(
            model=str(model), out=str(out), text=(str(corpus),), dtype="float32", device="cpu", **fields
        )
    )  # type: ignore[arg-type]
    return out


@pytest.fixture(scope="module")
def sinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 whose first position is an attention sink, as in real models without a BOS token."""
    folder = make_model("gpt2", tmp_path_factory.mktemp("sinking") / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.transformer.wpe.weight[0] *= 400
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sunk(sinking: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(sinking, corpus, tmp_path_factory.mktemp("sunk") / "rec")


@pytest.fixture(scope="module")
def native(sunk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native") / "sae"
    train(
        TrainParams(
            activations=str(sunk), out=str(out), layer=2, width=64, k=6, tokens=20_000, batch_size=200
        )
    )
    return out


def brought_back(native: Path, root: Path, *, format: str = "saelens", stated: bool, **where: str) -> Path:
    """The SAE through another library's files, with or without our entry in them."""
    theirs = root / "layers.2"
    export_sae(ExportParams(sae_path=str(native), out=str(theirs), format=format))
    if not stated:
        path = theirs / ("config.json" if format == "dictionary_learning" else "cfg.json")
        config = json.loads(path.read_text())
        del (config["metadata"] if format == "saelens" else config)["microscope_token_filter"]
        path.write_text(json.dumps(config))
    out = root / "back"
    import_sae(ImportParams(path=str(theirs), out=str(out), allow_pickle=True, **where))  # type: ignore[arg-type]
    return out


def metrics(sae: Path, recording: Path) -> dict[str, float]:
    params = EvaluateParams(
        sae_path=str(sae), activations=str(recording), loss_contexts=20, probe_tokens=0, device="cpu"
    )
    return summarise(evaluate(params))["metrics"]


def assert_alike(got: dict[str, float], expected: dict[str, float]) -> None:
    for name, value in expected.items():
        if isinstance(value, float) and name != "dead_in_training":
            assert got[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("format", ["saelens", "sparsify", "dictionary_learning"])
@pytest.mark.parametrize("stated", [True, False], ids=["stated", "derived"])
def test_an_sae_that_comes_back_measures_the_same(native, sunk, tmp_path, format, stated):
    back = brought_back(native, tmp_path, format=format, stated=stated, activations=str(sunk))
    own, found = (load_sae(path).config.token_filter for path in (native, back))
    assert found.max_norm == own.max_norm
    assert (found.derived is None) is stated
    if not stated:
        assert found.derived.source == "recording"
        assert found.derived.name == Recording(sunk).manifest.fingerprint
        assert found.derived.factor * found.derived.median_norm == pytest.approx(found.max_norm)
    expected, got = metrics(native, sunk), metrics(back, sunk)
    without, with_filter = (expected[n] - expected["ce_model"] for n in ("ce_sae_all_tokens", "ce_sae"))
    assert without > 3 * abs(with_filter)  # so that a lost filter would show
    assert_alike(got, expected)


def test_one_that_nobody_tested_gets_the_filter_of_what_it_is_measured_on(native, sunk, tmp_path):
    back = brought_back(native, tmp_path, stated=False)
    assert not load_sae(back).config.token_filter.known
    params = EvaluateParams(
        sae_path=str(back), activations=str(sunk), loss_contexts=20, probe_tokens=0, device="cpu"
    )
    found = evaluate(params)
    assert found.token_filter.derived is not None
    assert "derived" in found.filter_rule
    assert found.ordinary.n < found.every.n
    assert_alike(summarise(found)["metrics"], metrics(native, sunk))


def test_analysis_and_firing_lists_leave_the_sinks_out(native, sunk, sinking, tmp_path):
    back = brought_back(native, tmp_path, stated=False)
    strongest = []
    for sae in (native, back):
        analysis, details = analyse(
            AnalyseParams(sae_path=str(sae), activations=str(sunk), model=str(sinking), device="cpu")
        )
        assert analysis.counted < analysis.tokens
        assert sum(d.firings for d in details) == pytest.approx(
            sum(d.density for d in details) * analysis.counted
        )
        strongest.append(max(d.max_activation for d in details))
        assert not any(e.peak == 0 and e.pos % 16 == 0 for d in details for e in d.examples)
    assert "derived" in analysis.filter_rule
    assert strongest[1] == pytest.approx(strongest[0], rel=1e-3)
    model = load_model(str(sinking), dtype="float32", device="cpu")
    alive = [d.index for d in details if not d.dead][:5]
    lists = [
        [FeatureAnalyzer(load_sae(s), model.tokenizer, sunk, 2).analyze_feature_tokens(i) for i in alive]
        for s in (native, back)
    ]
    for one, other in zip(*lists, strict=True):
        assert [(r["token"], r["count"]) for r in one] == [(r["token"], r["count"]) for r in other]


def test_densities_count_the_tokens_that_count(llama, model_folders, corpus, tmp_path):
    """Where every window begins with a special token, densities still sum to L0."""
    model = tmp_path / "bos"
    llama.model.save_pretrained(model)
    tokenizer = copy.deepcopy(llama.tokenizer)
    from tokenizers import processors

    bos = tokenizer.all_special_ids[0]
    name = tokenizer.convert_ids_to_tokens(bos)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", special_tokens=[(name, bos)]
    )
    tokenizer.save_pretrained(model)
    folder = recorded(model, corpus, tmp_path / "rec", context_length=8)
    sae = tmp_path / "sae"
    train(
        TrainParams(
            activations=str(folder), out=str(sae), layer=2, width=64, k=6, tokens=8_000, batch_size=200
        )
    )
    analysis, details = analyse(AnalyseParams(sae_path=str(sae), activations=str(folder), device="cpu"))
    recording, loaded = Recording(folder), load_sae(sae)
    site = recording.site(SITE)
    firings = tokens = 0
    for split in ("train", "held_out"):
        for chunk in recording.chunks(split, site):
            ordinary = chunk.flags == 0
            codes = loaded.encode(torch.from_numpy(chunk.values[ordinary]).float())
            firings += int((codes.values > 0).sum())
            tokens += int(ordinary.sum())
    assert 0.8 < tokens / analysis.tokens < 0.95
    assert analysis.counted == tokens
    assert sum(d.density for d in details) == pytest.approx(firings / tokens)


def resident_with(loaded: LoadedModel, saes: Sequence[Path]) -> tuple[ResidentModel, list[SparseAutoencoder]]:
    resident = ResidentModel(loaded)
    return resident, [resident.attach(path) for path in saes]


def test_live_edits_and_readings_spare_the_sinks(native, sinking, tmp_path):
    back = brought_back(native, tmp_path, stated=False)
    loaded = load_model(str(sinking), dtype="float32", device="cpu")
    resident, (own, derived) = resident_with(loaded, [native, back])
    assert derived.config.token_filter.derived.source == "text"
    resident.open("s", PROMPT)
    kl = []
    for sae in (own, derived):
        plan = EditPlan(edits=(splice_of(sae),))
        applied = resident.apply("s", plan)
        assert 0 not in applied.outcome.effects[0].positions
        kl.append(applied.comparison.kl)
        fingerprint = sae.content_fingerprint()
        assert resident.left_out("s", fingerprint) == [0]
        assert all(values[0] == 0 for _, values in resident.read_features("s", fingerprint, top=64))
    assert kl[1] == pytest.approx(kl[0], rel=1e-3)


def splice_of(sae: SparseAutoencoder) -> Edit:
    return Edit(kind="splice", site=sae.config.site, sae=sae.content_fingerprint())


def test_a_certificate_judges_with_the_same_filter(native, sinking, tmp_path):
    back = brought_back(native, tmp_path, stated=False)
    loaded = load_model(str(sinking), dtype="float32", device="cpu")
    sae = load_sae(back)
    patch = PatchFile(plan=EditPlan(edits=(splice_of(sae),)), saes={sae.content_fingerprint(): str(back)})
    saes, _ = load_parts(patch, loaded)
    _, (live,) = resident_with(loaded, [back])
    assert saes[sae.content_fingerprint()].config.token_filter == live.config.token_filter
    assert live.config.token_filter == filter_on_model(loaded, SITE)


def test_what_a_colleague_attaches_moves_no_threshold(native, sinking, tmp_path):
    """Two SAEs of one site with their own limits: each keeps its own, and the prompt is marked alike."""
    strict = load_sae(native)
    with torch.no_grad():
        strict.b_enc.add_(0.01)  # another SAE
    strict.config.token_filter = TokenFilter(max_norm=1e-3)
    save_sae(strict, tmp_path / "strict")
    loaded = load_model(str(sinking), dtype="float32", device="cpu")
    alone, (own,) = resident_with(loaded, [native])
    shared, (same, other) = resident_with(loaded, [native, tmp_path / "strict"])
    views = [resident.open("s", PROMPT)[0] for resident in (alone, shared)]
    assert views[0] == views[1]
    assert views[0].sink[0]
    assert not any(views[0].sink[1:])
    everything = list(range(len(views[0].tokens)))
    assert shared.left_out("s", same.content_fingerprint()) == alone.left_out("s", own.content_fingerprint())
    assert shared.left_out("s", other.content_fingerprint()) == everything


def test_a_filter_found_live_survives_eviction(native, sinking, tmp_path):
    back = brought_back(native, tmp_path, stated=False)
    loaded = load_model(str(sinking), dtype="float32", device="cpu")
    resident, (sae,) = resident_with(loaded, [back])
    fingerprint, found = sae.content_fingerprint(), sae.config.token_filter
    resident.attached.saes.evict(fingerprint)
    again = resident.attached.saes[fingerprint]
    assert again is not sae
    assert again.config.token_filter == found


def test_an_sae_trained_on_every_token_leaves_out_none(sunk, sinking, tmp_path):
    out = tmp_path / "sae"
    train(
        TrainParams(
            activations=str(sunk),
            out=str(out),
            layer=2,
            width=64,
            k=6,
            tokens=8_000,
            batch_size=200,
            keep_outliers=True,
        )
    )
    params = EvaluateParams(
        sae_path=str(out), activations=str(sunk), loss_contexts=10, probe_tokens=0, device="cpu"
    )
    found = evaluate(params)
    assert not found.token_filter.leaves_out
    assert found.loss == found.loss_every
    assert found.ordinary.n < found.every.n  # the FVU that is the goal never counts a sink
    assert "every token" in found.filter_rule
    analysis, _ = analyse(
        AnalyseParams(sae_path=str(out), activations=str(sunk), model=str(sinking), device="cpu")
    )
    assert analysis.counted == analysis.tokens


def test_saes_with_unlike_filters_are_compared_on_the_same_tokens(native, sunk, tmp_path):
    norms = np.concatenate([c.norm for c in Recording(sunk).chunks("held_out", Recording(sunk).site(SITE))])
    strict = load_sae(native)
    strict.config.token_filter = TokenFilter(max_norm=float(np.median(norms)))
    save_sae(strict, tmp_path / "strict")
    params = CompareParams(
        sae_path=(str(native), str(tmp_path / "strict")),
        activations=str(sunk),
        loss_contexts=4,
        probe_tokens=0,
        device="cpu",
    )
    comparison = compare(params)
    one, other = comparison.evaluations
    assert one.ordinary.n == other.ordinary.n
    assert one.ordinary.fvu == pytest.approx(other.ordinary.fvu)
    assert comparison.differences[0].difference == pytest.approx(0, abs=1e-12)
    assert one.loss.ce_sae != other.loss.ce_sae  # the splice follows each one's own filter


def test_a_filter_keeps_and_leaves_out_by_hand():
    flags = np.array([0, SPECIAL, BOS, OVERFLOW, 0, SPECIAL | BOS], np.uint8)
    norm = np.array([1.0, 1.0, 1.0, 1.0, 9.0, 9.0], np.float32)
    expected = {
        (True, 5.0): [True, False, False, False, False, False],
        (True, None): [True, False, False, False, True, False],
        (False, 5.0): [True, True, True, False, False, False],
        (False, None): [True, True, True, False, True, True],
    }
    for (special, limit), rows in expected.items():
        found = TokenFilter(exclude_special=special, max_norm=limit)
        assert kept_rows(found, flags, norm).tolist() == rows
        marks = torch.from_numpy((flags & (SPECIAL | BOS)) != 0)
        usable = np.array(rows)[flags != OVERFLOW]
        assert found.keep(marks, torch.from_numpy(norm))[flags != OVERFLOW].tolist() == usable.tolist()


# --- nothing left to measure ---------------------------------------------------------------------------


def test_a_filter_that_keeps_no_token_is_said(native, sunk, sinking, tmp_path):
    nothing = load_sae(native)
    nothing.config.token_filter = TokenFilter(max_norm=1e-6)
    save_sae(nothing, tmp_path / "sae")
    sae = {"sae_path": str(tmp_path / "sae"), "activations": str(sunk), "device": "cpu"}
    with pytest.raises(MicroscopeError) as caught:
        evaluate(EvaluateParams(**sae))
    assert caught.value.code == "no_held_out_rows"
    with pytest.raises(MicroscopeError) as caught:
        analyse(AnalyseParams(**sae, model=str(sinking)))
    assert caught.value.code == "nothing_to_measure"
    result = import_sae(
        ImportParams(path=str(tmp_path / "sae"), out=str(tmp_path / "in"), activations=str(sunk))
    )
    assert not result["smoke_test"]["passed"]
    assert "Nothing to test on" in result["smoke_test"]["message"]


def test_zero_ablation_of_nothing_recovers_nothing(native, sunk, tmp_path):
    """Of windows of which the splice leaves every token alone there is no loss to recover, and no division."""
    from microscope.evaluation.splice import Window, loss_recovered, splicer_for
    from microscope.progress import SILENT

    sae = load_sae(native)
    loaded = load_model(Recording(sunk).manifest.model.reference, dtype="float32", device="cpu")
    ids = np.array(loaded.tokenizer(PROMPT)["input_ids"])
    window = Window(tokens=ids, special=np.ones(len(ids), bool), doc=0)
    found = loss_recovered(splicer_for(loaded, sae), [window] * 4, progress=SILENT, bootstrap=10, seed=0)
    assert found is not None
    assert found[0].ce_recovered is found[0].kl_recovered is found[0].ce_recovered_interval is None
    assert found[0].ce_sae == pytest.approx(found[0].ce_model)
    assert found[1].kl_recovered is not None


def test_one_token_leaves_no_variance(native, sunk, tmp_path):
    recording = Recording(sunk)
    norms = np.concatenate([c.norm for c in recording.chunks("held_out", recording.site(SITE))])
    single = load_sae(native)
    single.config.token_filter = TokenFilter(max_norm=float(norms.min()))
    save_sae(single, tmp_path / "sae")
    with pytest.raises(MicroscopeError) as caught:
        evaluate(EvaluateParams(sae_path=str(tmp_path / "sae"), activations=str(sunk), device="cpu"))
    assert caught.value.code == "nothing_to_measure"
    assert SITE in caught.value.message
