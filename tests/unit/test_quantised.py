"""Models in 8 and 4 bits: what is rounded, what it costs, and that nothing takes one for the whole model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from microscope.activations import Recording, record
from microscope.activations.forward import SiteReader
from microscope.cli import main
from microscope.errors import MicroscopeError
from microscope.evaluation import evaluate
from microscope.live import ResidentModel
from microscope.live.readings import sinks
from microscope.models import LoadedModel, inspect_model, load_model, runner_for
from microscope.models.effect import TEXT, inspect
from microscope.models.quantised import Int8Linear
from microscope.models.runner.base import run_blocks
from microscope.params import (
    Edit,
    EditPlan,
    EvaluateParams,
    FeatureRef,
    InspectParams,
    Site,
    TraceParams,
    TrainParams,
)
from microscope.training import train
from tests.families.tiny import make_any
from tests.tiny_models import make_corpus, make_model

WIDTH = 64
KINDS = ("llama", "qwen3", "gpt2", "gemma2", "gpt_neox")
ROUNDED = ("int8", "nf4")
# The 16 values of nf4: quantiles of the standard normal distribution, scaled to [−1, 1].
NF4 = torch.tensor(
    [
        -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wide")
    return {kind: make_model(kind, root / kind, width=WIDTH) for kind in KINDS}


def _load(folder: Path, dtype: str, arithmetic: str = "float32") -> LoadedModel:
    return load_model(str(folder), dtype=dtype, arithmetic=arithmetic, device="cpu")


def _rounded_weight(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """The rounding written down anew, for a weight ``[out, in]``."""
    if dtype == "int8":
        top = weight.half().float().abs().amax(1, keepdim=True)
        return (weight.half().float() / top * 127).round() * top / 127
    blocks = weight.reshape(-1, 64)
    top = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / top).unsqueeze(-1).sub(NF4).abs().argmin(-1)
    return (NF4[nearest] * top).reshape(weight.shape)


@pytest.mark.parametrize("dtype", ROUNDED)
def test_weights_are_the_rounded_ones_of_the_file(folders: dict[str, Path], dtype: str) -> None:
    """A layer's product is that of its weights rounded by the definition; scales of nf4 are rounded once more."""
    loaded = _load(folders["llama"], dtype)
    own = load_file(folders["llama"] / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    layer = loaded.model.model.layers[1].mlp.down_proj
    with torch.inference_mode():
        weight = layer(torch.eye(2 * WIDTH)).T
    expected = _rounded_weight(own, dtype)
    assert not torch.allclose(weight, own, atol=1e-4)
    difference = (weight - expected).abs()
    if dtype == "int8":
        # ties fall either way in float16: one step, and rarely
        assert (difference <= own.abs().amax(1, keepdim=True) / 126).all()
        assert (difference > 1e-6).float().mean() < 0.01
    else:
        assert difference.max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("kind", KINDS)
def test_only_matrices_of_blocks_are_rounded(folders: dict[str, Path], kind: str, dtype: str) -> None:
    loaded, whole = _load(folders[kind], dtype), _load(folders[kind], "float32")
    kinds = {type(m).__name__ for m in loaded.model.base_model.modules() if isinstance(m, nn.Linear)}
    assert kinds == ({"Int8Linear"} if dtype == "int8" else {"Linear4bit"})
    assert torch.equal(
        loaded.model.get_output_embeddings().weight, whole.model.get_output_embeddings().weight
    )
    assert loaded.parameters == whole.parameters == sum(p.numel() for p in whole.model.parameters())
    assert loaded.quantisation == dtype
    assert whole.quantisation is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_tells_precisions_apart_and_not_arithmetics(
    folders: dict[str, Path], kind: str
) -> None:
    whole = {_load(folders[kind], dtype).fingerprint for dtype in ("float32", "bfloat16")}
    found = {
        dtype: {_load(folders[kind], dtype, a).fingerprint for a in ("float32", "bfloat16")}
        for dtype in ROUNDED
    }
    assert len(whole) == len(found["int8"]) == len(found["nf4"]) == 1
    assert len(whole | found["int8"] | found["nf4"]) == 3


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ROUNDED)
def test_the_fingerprint_outlives_the_first_forward_pass(
    folders: dict[str, Path], dtype: str, arithmetic: str
) -> None:
    loaded = _load(folders["llama"], dtype, arithmetic)
    assert "fingerprint" in vars(loaded)
    before = loaded.fingerprint
    with torch.inference_mode():
        loaded.model(torch.arange(20)[None])
    assert loaded.fingerprint == before == _load(folders["llama"], dtype, arithmetic).fingerprint


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_one_by_one_equal_the_rounded_model(folders: dict[str, Path], kind: str, dtype: str) -> None:
    """Also in parts: a row's result does not depend on which other rows are computed with it."""
    loaded = _load(folders[kind], dtype)
    tokens = torch.randint(3, 200, (1, 40), generator=torch.Generator().manual_seed(1))
    runner = runner_for(loaded)
    with torch.inference_mode():
        plain = loaded.model(tokens, use_cache=False).logits[0]
        whole = runner.head(
            run_blocks(runner, runner.embed(runner.rows(tokens)), runner.rows(tokens), 0, runner.n_layers)
        )[0]
        start = 25
        before, after = runner.rows(tokens[:, :start]), runner.rows(tokens, start)
        past, x = [], runner.embed(before)
        for layer in range(runner.n_layers):
            x, new = runner.block(layer, x, before, None)
            past.append(new)
        x = runner.embed(after)
        for layer in range(runner.n_layers):
            x, _ = runner.block(layer, x, after, past[layer])
        parts = runner.head(x)[0]
    scale = plain.abs().max()
    assert (whole - plain).abs().max() < 1e-5 * scale
    assert (parts - plain[start:]).abs().max() < 1e-5 * scale


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "texts")


def _trace(folder: Path, texts: Path, out: Path, **options: Any) -> TraceParams:
    values: dict[str, Any] = {"dtype": "nf4", "device": "cpu", "tokens": 2000, "held_out": 0.2} | options
    return TraceParams(
        model=str(folder), out=str(out), layers=(2,), text=(str(texts),), context_length=32, **values
    )


@pytest.fixture(scope="module")
def traced(folders: dict[str, Path], texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of the 4-bit model."""
    out = tmp_path_factory.mktemp("traced") / "nf4"
    record(_trace(folders["llama"], texts, out))
    return out


def test_a_recording_says_how_weights_were_rounded(folders: dict[str, Path], traced: Path) -> None:
    model = Recording(traced).manifest.model
    loaded = _load(folders["llama"], "nf4")
    assert model.quantisation == "nf4"
    assert model.fingerprint == loaded.fingerprint
    chunk = next(Recording(traced).chunks("train", Recording(traced).site("resid_post.2")))
    window = next(iter(chunk.windows()))
    with SiteReader(loaded, [Site("resid_post", 2)]) as reader:
        tokens = torch.from_numpy(window.token.astype("int64"))[None]
        own = reader.read(tokens, tokens >= 0)["resid_post.2"][0]
    stored = torch.from_numpy(chunk.values[: len(own)]).float()
    # traced in bfloat16 where the processor has it
    assert (stored - own).norm() < 0.05 * own.norm()


def test_evaluation_uses_the_rounded_model_and_refuses_the_whole_one(
    folders: dict[str, Path], traced: Path, tmp_path: Path
) -> None:
    train(
        TrainParams(
            activations=str(traced), out=str(tmp_path / "sae"), layer=2, width=(96,), k=(8,), tokens=4000,
            batch_size=200, device="cpu",
        )
    )  # fmt: skip
    options: dict[str, Any] = {
        "sae_path": str(tmp_path / "sae"),
        "activations": str(traced),
        "loss_contexts": 4,
        "probe_tokens": 0,
        "bootstrap": 0,
        "device": "cpu",
    }
    own = evaluate(EvaluateParams(**options))
    assert own.loss is not None
    with pytest.raises(MicroscopeError, match="recorded with nf4 weights, and these are unrounded") as error:
        evaluate(EvaluateParams(**options, dtype="float32"))
    assert error.value.code == "wrong_model"
    forced = evaluate(EvaluateParams(**options, dtype="float32", force=True))
    assert forced.loss is not None
    assert forced.loss.ce_model != own.loss.ce_model
    resident = ResidentModel(_load(folders["llama"], "nf4"))
    sae = resident.attach(tmp_path / "sae")
    with pytest.raises(MicroscopeError) as error:
        ResidentModel(_load(folders["llama"], "float32")).attach(tmp_path / "sae")
    assert error.value.code == "wrong_model"
    # live: a toggle answers what a plain run of the rounded model with the same change answers
    resident.open("s", "the state of the union is strong and the people ask congress")
    feature = FeatureRef(sae=sae.content_fingerprint(), index=3)
    plan = EditPlan(edits=(Edit(kind="add", site="resid_post.2", feature=feature, strength=5.0),))
    outcome = resident.apply("s", plan, top=5)
    row = sae.W_dec[3].float() / sae.W_dec[3].float().norm()
    loaded = _load(folders["llama"], "nf4")
    changed = resident.sessions.by_name["s"]

    def push(_module: object, _inputs: object, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        skipped = sinks(changed.baseline) | changed.baseline.special
        x = x + 5.0 * row * (~skipped)[:, None]
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = loaded.model.model.layers[2].register_forward_hook(push)
    with torch.inference_mode():
        expected = loaded.model(changed.baseline.tokens[None]).logits[0, -1]
    handle.remove()
    assert (outcome.outcome.logits - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", ROUNDED)
def test_inspecting_measures_what_rounding_changes(folders: dict[str, Path], dtype: str) -> None:
    facts = inspect(InspectParams(model=str(folders["llama"]), dtype=dtype, device="cpu"))
    rounded, whole = _load(folders["llama"], dtype), _load(folders["llama"], "float32")
    found = facts["rounding"]
    assert facts["fingerprint"] == rounded.fingerprint
    assert found["reference"] == "float32"
    assert 100 < found["tokens"] <= whole.max_context
    ids = torch.tensor([whole.tokenizer(TEXT)["input_ids"][: found["tokens"]]])
    with torch.inference_mode():
        a, b = (m.model(ids).logits[0].double() for m in (whole, rounded))
    p, q = a.softmax(-1), b.softmax(-1)
    kl = (p * (p / q).log()).sum(-1)
    assert found["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found["max_abs_logit"] == pytest.approx(float((a - b).abs().max()), rel=1e-4)
    assert found["top1_agreement"] == pytest.approx(float((a.argmax(-1) == b.argmax(-1)).double().mean()))
    assert found["kl"] > 0
    limit = 0.1 if dtype == "int8" else 10
    assert found["kl"] < limit


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *ROUNDED])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_said_before_loading_are_those_in_memory(
    folders: dict[str, Path], kind: str, dtype: str
) -> None:
    loaded = _load(folders[kind], dtype)
    facts = inspect_model(str(folders[kind]))
    tensors = [*loaded.model.state_dict(keep_vars=True).items()]
    seen: dict[int, int] = {}
    for name, tensor in tensors:
        if (
            "quant_map" not in name and "quant_state" not in name
        ):  # 16 and 256 numbers per matrix, whatever its size
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    said = (facts["bytes_needed"][dtype] - 300 * 2**20) / 1.1
    assert sum(seen.values()) == pytest.approx(said, rel=0.02)


def test_narrow_layers_are_refused_for_nf4_and_fine_for_int8(model_folders: dict[str, Path]) -> None:
    with pytest.raises(MicroscopeError, match="is 32 × 32") as error:
        load_model(str(model_folders["llama"]), dtype="nf4", device="cpu")
    assert error.value.code == "widths_do_not_suit"
    assert isinstance(
        load_model(str(model_folders["llama"]), dtype="int8", device="cpu").model.model.layers[0].mlp.up_proj,
        Int8Linear,
    )


def test_a_missing_package_is_said_with_its_remedy(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(MicroscopeError, match="not installed") as error:
        load_model(str(folders["llama"]), dtype="int8", device="cpu")
    assert error.value.code == "bitsandbytes_missing"
    assert "pip install" in error.value.hint


def test_files_that_are_quantised_already_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MicroscopeError, match="gptq") as error:
        load_model(str(tmp_path), device="cpu")
    assert error.value.code == "quantised_files"


# --- command line ---------------------------------------------------------------------------------------


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(main, [*arguments])


def test_trace_and_inspect_take_the_usual_flags(
    folders: dict[str, Path], texts: Path, tmp_path: Path
) -> None:
    model = str(folders["llama"])
    out = str(tmp_path / "acts")
    common = ["--layers", "1", "--text", str(texts), "--tokens", "2000", "--context-length", "32"]
    done = _run("trace", "--model", model, "--out", out, *common, "--load-in-8bit", "--json")
    assert done.exit_code == 0, done.output
    assert Recording(out).manifest.model.quantisation == "int8"
    done = _run("inspect", "--model", model, "--load-in-4bit", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["rounding"]["dtype"] == "nf4"
    assert set(facts["bytes_needed"]) == {"float32", "bfloat16", "int8", "nf4"}
    shown = _run("inspect", "--model", model, "--load-in-4bit")
    assert "mean KL" in shown.stdout
    assert "max |Δlogit|" in shown.stdout


def test_two_precisions_at_once_are_refused(folders: dict[str, Path]) -> None:
    model = str(folders["llama"])
    for flags in (["--load-in-8bit", "--load-in-4bit"], ["--load-in-4bit", "--dtype", "bf16"]):
        done = _run("inspect", "--model", model, *flags)
        assert done.exit_code == 3
        assert "two_precisions" in done.stderr
    assert _run("inspect", "--model", model, "--load-in-4bit", "--dtype", "nf4", "--json").exit_code == 0


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("falcon", "nothing_to_round", "plain linear layers"),
        ("mamba", "unsupported_family", "rounded as int8"),
    ],
)
def test_models_that_cannot_be_rounded_say_so(tmp_path: Path, kind: str, code: str, words: str) -> None:
    """Falcon has layers of its own that bitsandbytes passes over; Mamba multiplies by its weights itself."""
    folder = make_any(kind, tmp_path)
    with pytest.raises(MicroscopeError, match=words) as error:
        _load(folder, "int8")
    assert error.value.code == code
    assert "bfloat16" in error.value.hint
    assert _load(folder, "bfloat16").n_layers == 4
