"""Feature analysis against brute force over dense activations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from microscope.activations import Recording, record
from microscope.errors import MicroscopeError
from microscope.features import FeatureAnalyzer, FeatureDetails, analyse
from microscope.features.codes import CodeReader
from microscope.features.statistics import KeptWindows, TokenStatistics, spread_over_quantiles
from microscope.models import runner_for
from microscope.params import AnalyseParams, TraceParams, TrainParams
from microscope.sae import SparseAutoencoder
from microscope.training import train
from tests.skips import only_with_glibc


@pytest.fixture(scope="module")
def params(sae_folder, recording_folder, tmp_path_factory) -> AnalyseParams:
    return AnalyseParams(
        sae_path=str(sae_folder),
        activations=str(recording_folder),
        out=str(tmp_path_factory.mktemp("analysis")),
        examples=5,
        window=6,
        device="cpu",
    )


@pytest.fixture(scope="module")
def result(params):
    analysis, _ = analyse(params)
    lines = Path(params.out, "details.jsonl").read_bytes().splitlines()
    return analysis, [msgspec.json.decode(line, type=FeatureDetails) for line in lines]


@pytest.fixture(scope="module")
def dense(recording, sae):
    """Dense activations [tokens, latents] of the whole recording, filtered tokens zero, with token and window ids."""
    site = recording.site("resid_post.2")
    rows, tokens, windows, docs = [], [], [], []
    number = 0
    for split in ("train", "held_out"):
        for chunk in recording.chunks(split, site):
            for window in chunk.windows():
                codes = sae.encode(torch.from_numpy(window.values).float())
                full = torch.zeros(len(window.token), 96).scatter_(1, codes.indices, codes.values).numpy()
                full[~recording.keep_mask(site, window.flags, window.norm)] = 0
                rows.append(full)
                tokens.append(window.token)
                windows.append(np.full(len(full), number))
                docs.append(window.doc)
                number += 1
    return tuple(map(np.concatenate, (rows, tokens, windows, docs)))


def test_statistics_by_brute_force(result, dense):
    analysis, details = result
    f, tokens, _, _ = dense
    assert analysis.tokens == len(f)
    assert analysis.n_features == len(details) == 96
    assert analysis.dead == sum((f > 0).sum(0) == 0)
    for d in details:
        column = f[:, d.index]
        fired = column[column > 0]
        assert d.firings == len(fired)
        assert d.density == pytest.approx(len(fired) / len(f))
        assert d.dead == (len(fired) == 0)
        if d.dead:
            assert d.max_activation == d.p999 == d.mean_activation == 0
            assert d.examples == d.top_tokens == []
            continue
        assert d.max_activation == pytest.approx(fired.max(), rel=1e-5)
        assert d.mean_activation == pytest.approx(fired.mean(), rel=1e-4)
        assert sum(d.histogram) == len(fired)
        counts, _ = np.histogram(fired, 30, (0, fired.max()))
        assert np.abs(counts - d.histogram).sum() <= 4  # only values on an edge may differ
        if len(fired) > 50:
            assert d.p999 == pytest.approx(np.quantile(fired, 0.999, method="inverted_cdf"), rel=0.05)
        for entry in d.top_tokens:
            own = column[(tokens == entry.token) & (column > 0)]
            assert entry.count == len(own)
            assert entry.mean == pytest.approx(own.mean(), abs=1e-3)
        sums = [column[tokens == t].sum() for t in np.unique(tokens)]
        heaviest = sorted(sums, reverse=True)[: len(d.top_tokens)]
        assert sorted((e.mean * e.count for e in d.top_tokens), reverse=True) == pytest.approx(
            heaviest, rel=1e-2, abs=1e-2
        )


def test_examples_are_the_strongest_windows_with_their_text(result, dense, llama):
    _, details = result
    f, tokens, windows, docs = dense
    written = {i: piece.replace("▁", " ") for piece, i in llama.tokenizer.get_vocab().items()}
    for d in details[:40]:
        peaks = np.array([f[windows == w, d.index].max() for w in range(windows.max() + 1)])
        expected = np.sort(peaks[peaks > 0])[::-1][:5]
        assert [e.max for e in d.examples] == pytest.approx(expected.tolist(), abs=1e-3)
        for example in d.examples:
            assert example.values[example.peak] == pytest.approx(example.max, abs=1e-3)
            assert len(example.texts) == len(example.values) <= 13
            place = np.flatnonzero(np.isclose(f[:, d.index], example.max, atol=2e-4) & (docs == example.doc))
            around = [
                (
                    [written[t] for t in tokens[p - example.peak :][: len(example.texts)].tolist()],
                    f[p - example.peak :][: len(example.values), d.index],
                )
                for p in place
            ]
            assert any(
                texts == example.texts and np.allclose(values, example.values, atol=1e-3)
                for texts, values in around
            )


def test_promoted_tokens_are_the_logit_lens_of_the_decoder(result, sae, llama):
    _, details = result
    with torch.no_grad():
        for d in details[::17]:
            direction = sae.W_dec[d.index] / sae.config.scale
            effect = llama.model.lm_head.weight @ (llama.model.model.norm.weight * direction)
            effect = effect - effect.mean()
            best = effect.topk(10)
            assert [t.weight for t in d.promoted] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert [t.token for t in d.promoted] == best.indices.tolist()
            assert [t.weight for t in d.suppressed] == pytest.approx(
                (-effect).topk(10).values.neg().tolist(), abs=1e-4
            )
            assert d.decoder_norm == pytest.approx(float(direction.norm()), rel=1e-5)


def test_little_memory_gives_the_same_result(params, result, tmp_path, monkeypatch):
    """Codes are forgotten and recomputed; nothing else changes."""
    encodes = []
    original = SparseAutoencoder.encode
    monkeypatch.setattr(
        SparseAutoencoder, "encode", lambda self, *x: encodes.append(len(encodes)) or original(self, *x)
    )
    analyse(msgspec.structs.replace(params, out=str(tmp_path / "remembered")))
    with_memory = len(encodes)
    monkeypatch.setattr(CodeReader, "__init__", _with_no_memory(CodeReader.__init__))
    analyse(msgspec.structs.replace(params, out=str(tmp_path)))
    assert (tmp_path / "details.jsonl").read_bytes() == Path(params.out, "details.jsonl").read_bytes()
    assert len(encodes) - with_memory >= 2 * with_memory


def _with_no_memory(init):
    def wrapped(self, *args, **kwargs):
        init(self, *args, **(kwargs | {"memory_bytes": 0}))

    return wrapped


def test_pruned_token_counts_keep_the_heaviest(monkeypatch, recording, sae):
    monkeypatch.setattr("microscope.features.statistics.MOST_PAIRS", 500)
    monkeypatch.setattr("microscope.features.statistics.KEEP_ITEMS", 20)
    site = recording.site("resid_post.2")

    def top(statistics):
        for firings in CodeReader(sae, recording, site, max_tokens=None, memory_bytes=0):
            statistics.add(firings)
        return statistics.top(1)

    pruned = top(TokenStatistics(256))
    monkeypatch.undo()
    exact = top(TokenStatistics(256))
    agree = [pruned[f][0][0] == exact[f][0][0] for f in exact]
    assert np.mean(agree) > 0.9


def test_top_windows_bound_what_they_keep(recording, sae):
    windows = KeptWindows(96, 2)
    for firings in CodeReader(
        sae, recording, recording.site("resid_post.2"), max_tokens=None, memory_bytes=0
    ):
        windows.add(firings)
        windows.result()
        assert windows.held <= 96 * 2
    feature, _, peak = windows.result()
    assert (np.bincount(feature) <= 2).all()
    assert (np.diff(peak)[np.diff(feature) == 0] <= 0).all()


def test_weaker_examples_come_from_every_quantile(result, dense):
    """Their peaks fall into the quantile groups of all the feature's windows, about as far as a sample can tell."""
    analysis, details = result
    f, _, windows, _ = dense
    assert analysis.quantiles == 4
    shares = []
    for d in details:
        peaks = np.array([f[windows == w, d.index].max() for w in range(windows.max() + 1)])
        peaks = np.sort(peaks[peaks > 0])[::-1]
        assert len({(e.doc, e.pos, e.peak) for e in (*d.examples, *d.quantile_examples)}) <= len(peaks)
        if len(peaks) < 40:
            continue
        groups = [e.group for e in d.quantile_examples]
        assert groups == sorted(groups)
        assert set(groups) >= {2, 3, 4}
        for example in d.quantile_examples:
            rank = np.searchsorted(-peaks, -example.max) / len(peaks)
            shares.append(abs(rank - (example.group - 0.5) / 4))
    assert len(shares) > 100
    assert np.mean(shares) < 0.1


def test_a_random_sample_is_fair():
    """Every window of a feature has the same chance, whatever its strength and its place."""
    from microscope.features.codes import Firings

    kept = np.zeros(100)
    for feature in range(300):
        windows = KeptWindows(300, 10, at_random=True)
        for part in range(4):
            window = np.arange(25) + 25 * part
            ones = np.full(25, feature, np.int32)
            windows.add(Firings(None, 0, 0, ones, window, window, window + np.float32(1)))
        found = windows.result()[1]
        assert len(found) == 10
        kept[found] += 1
    assert np.abs(kept - 30).max() < 5 * np.sqrt(30)


def test_quantile_examples_are_drawn_from_the_whole_group():
    """Every window of a quantile has the same chance: not the strongest, not the middle ones."""
    features = np.repeat(np.arange(500, dtype=np.int32), 40)
    windows = np.tile(np.arange(40), 500)
    feature, window, group = spread_over_quantiles(
        features, windows, (40 - windows).astype(np.float32), groups=4, each=2
    )
    assert (np.bincount(feature) == 8).all()
    assert (group == window // 10 + 1).all()
    assert (np.diff(feature * 4 + group) >= 0).all()
    assert (np.diff(window)[np.diff(feature * 4 + group) == 0] > 0).all()  # stronger ones first
    assert np.abs(np.bincount(window, minlength=40) - 100).max() < 5 * np.sqrt(100)


def test_few_windows_wait_and_the_same_ones_stay():
    """Picking the best often, in little memory, picks what picking them once at the end does."""
    from microscope.features.codes import Firings

    most = {}
    found = []
    for memory in (0, 2**30):
        windows = KeptWindows(40, 5, memory_bytes=memory)
        random = np.random.default_rng(0)
        for part in range(30):
            feature = np.repeat(np.arange(40, dtype=np.int32), 100)
            window = np.tile(np.arange(100) + 100 * part, 40)
            value = random.random(4000).astype(np.float32)
            windows.add(Firings(None, 0, 0, feature, window, window, value))
            most[memory] = max(most.get(memory, 0), windows.held)
        found.append(windows.result())
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)
    assert most[0] < 15_000 < most[2**30]


@only_with_glibc
def test_freed_memory_is_given_back():
    """A hundred megabytes between arrays that stay; in a process of its own, whose heap is known."""
    script = """
import re, pathlib, numpy
from microscope.heap import trim_heap
def used():
    return int(re.search(r"RssAnon:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
arrays = [numpy.ones(10_000) for _ in range(2000)]
arrays = arrays[::20]
before = used()
trim_heap()
print(before - used())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 80_000  # kB


def test_neighbours_are_the_largest_cosines(result, sae):
    _, details = result
    for matrix, name in ((sae.W_dec, "decoder_neighbours"), (sae.W_enc, "encoder_neighbours")):
        cosine = torch.nn.functional.cosine_similarity(matrix[:, None], matrix[None], dim=2)
        cosine.fill_diagonal_(-2)
        for d in details:
            found = getattr(d, name)
            assert len(found) == 8
            assert [n.cosine for n in found] == pytest.approx(
                cosine[d.index].topk(8).values.tolist(), abs=1e-4
            )
            assert cosine[d.index, found[0].index] == pytest.approx(found[0].cosine, abs=1e-4)


def test_features_that_fire_together(result, dense):
    """With few enough firings every one is counted, and the shares are exact."""
    _, details = result
    fires = dense[0] > 0
    density = fires.mean(0)
    seen = 0
    for d in details:
        if not 0 < d.firings <= 256:
            continue
        joint = fires[fires[:, d.index]].mean(0)
        for partner in d.partners:
            seen += 1
            assert partner.index != d.index
            assert partner.share == pytest.approx(joint[partner.index], abs=1e-3)
            assert partner.lift == pytest.approx(
                joint[partner.index] / density[partner.index], rel=1e-2, abs=0.01
            )
            assert partner.lift > 1
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where((joint > density) & (joint > 0), joint * np.log(joint / density), 0)
        score[d.index] = 0
        best = int(score.argmax())
        if score[best] > 0 and joint[best] > np.sort(joint)[-20]:
            assert max(p.share * np.log(p.lift) for p in d.partners) == pytest.approx(score[best], rel=0.05)
    assert seen > 100


def test_memory_does_not_grow_with_the_text(tmp_path, sae, sae_folder, model_folders, monkeypatch):
    """Ten times the text, the same peak: what is kept per feature, not per token."""
    import tracemalloc

    monkeypatch.setenv("MICROSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    peaks = []
    for rows in (20_000, 200_000):
        values = np.random.default_rng(0).normal(0, 1, (rows, 32)).astype(np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 32)
        documents = pa.array(np.arange(rows) // 64)
        pq.write_table(pa.table({"resid_post.2": column, "doc": documents}), tmp_path / f"{rows}.parquet")
        params = AnalyseParams(
            sae_path=str(sae_folder),
            activations=str(tmp_path / f"{rows}.parquet"),
            model=str(model_folders["llama"]),
            out=str(tmp_path / str(rows)),
            memory_mb=8,
            device="cpu",
        )
        Recording(params.activations)  # converted beforehand
        tracemalloc.start()
        analysis, _ = analyse(params)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert analysis.tokens == rows
    assert peaks[1] < peaks[0] + 4 * 2**20


def test_parquet_tables_hold_what_the_lines_hold(params, result):
    _, details = result
    examples = pq.read_table(f"{params.out}/examples.parquet").to_pylist()
    assert len(examples) == sum(len(d.examples) + len(d.quantile_examples) for d in details)
    one = details[examples[7]["feature"]]
    assert examples[7]["texts"] in [e.texts for e in (*one.examples, *one.quantile_examples)]
    tokens = pq.read_table(f"{params.out}/tokens.parquet").to_pylist()
    assert {t["kind"] for t in tokens} == {"fires_on", "promoted", "suppressed"}
    assert len(tokens) == sum(len(d.top_tokens) + len(d.promoted) + len(d.suppressed) for d in details)
    neighbours = pq.read_table(f"{params.out}/neighbours.parquet").to_pylist()
    assert len(neighbours) == sum(
        len(d.decoder_neighbours) + len(d.encoder_neighbours) + len(d.partners) for d in details
    )


def test_the_table_and_the_summary_match_the_lines(params, result):
    analysis, details = result
    table = pq.read_table(f"{params.out}/features.parquet").to_pydict()
    assert table["index"] == [d.index for d in details]
    assert table["p999"] == [d.p999 for d in details]
    assert json.loads(Path(params.out, "analysis.json").read_text())["dead"] == analysis.dead


def test_one_feature_equals_its_line(params, result):
    _, details = result
    one = max(details, key=lambda d: d.firings)
    _, found = analyse(msgspec.structs.replace(params, out=None, feature=one.index))
    assert len(found) == 1
    assert found[0].firings == one.firings
    assert found[0].top_tokens == one.top_tokens
    assert [e.texts for e in found[0].examples] == [e.texts for e in one.examples]


def test_analyzer_of_the_library(sae, llama, recording_folder, result):
    _, details = result
    one = max(details, key=lambda d: d.firings)
    analyzer = FeatureAnalyzer(sae, llama.tokenizer, recording_folder, 2)
    rows = analyzer.analyze_feature_tokens(one.index, top_k=3)
    assert [r["token"] for r in rows] == [t.token for t in one.top_tokens[:3]]
    with pytest.raises(MicroscopeError, match="96 latents"):
        analyzer.analyze_feature_tokens(96)
    with pytest.raises(MicroscopeError, match=r"resid_post\.2"):
        FeatureAnalyzer(sae, llama.tokenizer, recording_folder, 1)


def test_runner_offers_what_the_logit_lens_needs(tiny):
    runner = runner_for(tiny)
    x = torch.randn(3, runner.d_model)
    logits = runner.normalise(x) @ runner.unembedding.T
    cap = getattr(tiny.config, "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    torch.testing.assert_close(logits, runner.head(x), rtol=1e-5, atol=1e-5)
    assert runner.final_gain.shape == (runner.d_model,)


def test_examples_in_scripts_of_several_tokens_per_character_are_readable(llama, tmp_path):
    """With a token per byte, what is shown of a text is a stretch of it, wherever windows are cut."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model, text = tmp_path / "model", "東京は日本の首都です。Привет, мир! 🦖🌍 "
    llama.model.save_pretrained(model)
    pieces = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {piece: number for number, piece in enumerate(pieces[:256])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(model)
    (tmp_path / "texts").mkdir()
    written = [f"{i} {text * 3}" for i in range(20)]
    for number, document in enumerate(written):
        (tmp_path / "texts" / f"{number}.txt").write_text(document, encoding="utf-8")
    recording, sae = tmp_path / "recording", tmp_path / "sae"
    record(
        TraceParams(
            model=str(model),
            out=str(recording),
            layers=(1,),
            text=(str(tmp_path / "texts"),),
            tokens=4000,
            context_length=32,
            held_out=0.3,
            dtype="float32",
            device="cpu",
        )
    )
    train(
        TrainParams(
            activations=str(recording),
            out=str(sae),
            layer=1,
            width=64,
            k=6,
            tokens=4000,
            batch_size=200,
            device="cpu",
        )
    )
    _, details = analyse(AnalyseParams(sae_path=str(sae), activations=str(recording), device="cpu"))
    shown = ["".join(e.texts) for d in details for e in (*d.examples, *d.quantile_examples)]
    assert len(shown) > 200
    whole = sum(any(part in document for document in written) for part in shown)
    # only where the file happens to be cut into chunks, and at the ends of what was recorded, a byte stands alone
    assert whole > 0.95 * len(shown)
    assert not any("\ufffd" in part for part in shown)
    names = {t.text for d in details for t in (*d.top_tokens, *d.promoted, *d.suppressed)}
    assert "<0xE3>" in names
    assert not any("\ufffd" in name for name in names)
