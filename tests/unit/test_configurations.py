"""Options of every family's configuration: computed as transformers computes them, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from microscope.activations import record
from microscope.errors import MicroscopeError
from microscope.live import ResidentModel
from microscope.models import BlockRunner, LoadedModel, inspect_model, load_model, runner_for
from microscope.models.runner import run_blocks
from microscope.params import TraceParams
from tests.tiny_models import make_corpus, make_model, make_tokenizer

Options = list[dict[str, Any]]

ACTIVATIONS = (
    "gelu",
    "gelu_new",
    "relu",
    "relu2",
    "tanh",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "mish",
    "prelu",
    "xielu",
)
ORIGINAL = 32


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **parameters}


def rotations(pairs: int) -> list[dict[str, Any]]:
    """Every kind of rotation, with parameters of its own, for heads of so many pairs of dimensions."""
    scaled: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL}
    return [
        rope("default") | {"rope_theta": 300.0},
        rope("linear", factor=4.0),
        rope("dynamic", factor=4.0),
        rope("yarn", **scaled),
        rope("yarn", **scaled, mscale=0.7, mscale_all_dim=0.3, beta_fast=16, beta_slow=2),
        rope("yarn", **scaled, attention_factor=0.5),
        rope("yarn", **scaled, truncate=False),
        rope("llama3", **scaled | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        rope("proportional", partial_rotary_factor=0.5),
        rope(
            "longrope",
            **scaled,
            short_factor=[1 + i / 10 for i in range(pairs)],
            long_factor=[2 + i / 5 for i in range(pairs)],
        ),
    ]


def ropes(pairs: int) -> Options:
    return [{"rope_parameters": r} for r in rotations(pairs)]


# What any decoder's configuration may say; classes that do not know a setting pass over it.
COMMON: Options = [
    *(
        {name: True}
        for name in ("is_decoder", "output_attentions", "output_hidden_states", "tie_word_embeddings")
    ),
    *({name: False} for name in ("is_causal", "use_cache", "return_dict")),
    {"add_cross_attention": True},
    {"use_bidirectional_attention": True},
    {"chunk_size_feed_forward": 2},
    {"attn_logit_softcapping": 0.7},
    {"final_logit_softcapping": 0.7},
    {"query_pre_attn_scalar": 3},
    {"sliding_window": 6},
    {"layer_types": ["full_attention"] * 4},
    {"layer_types": ["sliding_attention", "full_attention"] * 2},
    {"layer_types": ["chunked_attention"] * 4, "attention_chunk_size": 4},
    {"layer_types": ["full_attention"] * 3},
    {
        "attention_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 4.0,
    },
    {"partial_rotary_factor": 0.5},
]
GATED: Options = [
    *({"hidden_act": name} for name in ACTIVATIONS),
    {"attention_bias": True},
    {"mlp_bias": True},
    {"num_key_value_heads": 1},
    {"num_key_value_heads": 4},
    {"head_dim": 6},
    {"rms_norm_eps": 0.5},
    {"pretraining_tp": 2},
]  # fmt: skip
WINDOWS: Options = [
    {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": layers} for layers in (0, 2, 4)
]
GEMMA: Options = [
    *({"hidden_activation": name} for name in ACTIVATIONS if name not in ("prelu", "xielu")),
    {"attn_logit_softcapping": None},
    {"final_logit_softcapping": None},
    {"sliding_window": 3},
    {"sliding_window": None},
    {"attention_bias": True},
]
LOCAL = rope("default") | {"rope_theta": 100.0}
OPTIONS: dict[str, Options] = {
    "llama": COMMON + GATED + ropes(4),
    "mistral": COMMON + GATED + ropes(4),
    "qwen2": COMMON + GATED + WINDOWS + ropes(4),
    "qwen3": COMMON + GATED + WINDOWS + ropes(8),
    "gpt2": [
        *COMMON,
        *({"activation_function": name} for name in ACTIVATIONS),
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
        {"n_inner": 48},
        {"layer_norm_epsilon": 0.5},
        {"tie_word_embeddings": False},
    ],
    "gemma2": COMMON + GEMMA + ropes(8),
    "gemma3": COMMON
    + GEMMA
    + [{"rope_parameters": {"full_attention": r, "sliding_attention": LOCAL}} for r in rotations(8)]
    + [{"rope_parameters": {"full_attention": LOCAL, "sliding_attention": r}} for r in rotations(8)],
    "gpt_neox": [
        *COMMON,
        *({"hidden_act": name} for name in ACTIVATIONS),
        {"use_parallel_residual": False},
        {"attention_bias": False},
        {"layer_norm_eps": 0.5},
        *({"rotary_pct": share} for share in (0.25, 1.0)),
        *ropes(2),
    ],
}
# What must be computed, so that refusing everything cannot pass.
REFUSED = {
    "is_causal", "add_cross_attention", "use_bidirectional_attention", "layer_types", "sliding_window", "rope_parameters",
}  # fmt: skip


@torch.inference_mode()
def by_transformers(folder: str, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", return_dict=True
    )
    return model.eval()(ids).logits


def check_equal(folder: str) -> int:
    """The runner's logits, in one piece and continued from the middle, against transformers'; the length tried."""
    loaded = load_model(folder, dtype="float32", device="cpu")
    return check_runner(folder, loaded, runner_for(loaded))


@torch.inference_mode()
def check_runner(folder: str, loaded: LoadedModel, runner: BlockRunner) -> int:
    length = min(loaded.max_context, 96)
    ids = torch.randint(3, 200, (1, length), generator=torch.Generator().manual_seed(0))
    right = by_transformers(folder, ids)
    limit = 1e-5 * float(right.abs().max())
    out = runner.head(
        run_blocks(runner, runner.embed(runner.rows(ids)), runner.rows(ids), 0, runner.n_layers)
    )
    assert float((out - right).abs().max()) <= limit
    start = length - 2
    whole, rest = runner.rows(ids), runner.rows(ids, start)
    x, part = runner.embed(whole), runner.embed(rest)
    for layer in range(runner.n_layers):
        x, past = runner.block(layer, x, whole, None)
        part, _ = runner.block(layer, part, rest, past.upto(start))
    assert float((runner.head(part) - right[:, start:]).abs().max()) <= limit
    return length


@pytest.mark.parametrize(
    ("kind", "options"),
    [pytest.param(kind, o, id=f"{kind}-{json.dumps(o)[:90]}") for kind in OPTIONS for o in OPTIONS[kind]],
)
def test_every_option_is_computed_as_transformers_does_or_refused(kind, options, tmp_path):
    make_model(kind, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if "rotary_pct" in options:
        config.pop("rope_parameters")
    built = make_variant(kind, tmp_path, options)
    if not built:
        # Where transformers does not run it, nothing but a refusal will do: the comparison would fail.
        (tmp_path / "config.json").write_text(json.dumps(config | options))
    try:
        length = check_equal(str(tmp_path))
    except MicroscopeError as error:
        if built and not set(options) & REFUSED:
            raise AssertionError(f"refused without need: {error}") from error
        return
    assert length >= (ORIGINAL if "rope_parameters" in options else 3)


def make_variant(kind: str, folder, options: dict[str, Any]) -> bool:
    """Write the model with its options; False when transformers cannot run it on a short text."""
    try:
        make_model(kind, folder, **options)
        by_transformers(str(folder), torch.arange(3, 12)[None])
    except Exception:
        return False
    return True


def test_bidirectional_text_encoders_are_refused(tmp_path):
    folder = make_model("gemma3", tmp_path, use_bidirectional_attention=True)
    for look in (load_model, inspect_model):
        with pytest.raises(MicroscopeError) as caught:
            look(str(folder))
        assert caught.value.code == "unsupported_configuration"
        assert "use_bidirectional_attention" in caught.value.message


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {"is_decoder": True}),
        ("bert", {"position_embedding_type": "relative_key"}),
        ("roberta", {"position_embedding_type": "relative_key_query"}),
        ("roberta", {"is_decoder": True}),
        ("roberta", {"pad_token_id": None}),
        ("llama", {"auto_map": {"AutoModel": "own.Bidirectional"}, "architectures": ["LlamaEncoderModel"]}),
    ],
)
def test_functions_that_are_not_computed_are_refused(kind, settings, model_folders, tmp_path):
    config = json.loads((model_folders[kind] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(MicroscopeError) as caught:
        inspect_model(str(tmp_path))
    assert caught.value.code == "unsupported_configuration"
    assert next(iter(settings)) in caught.value.message


@pytest.mark.parametrize("kind", ["gpt2", "bert", "roberta"])
def test_stated_context_lengths_are_true(kind, model_folders):
    """Learned positions: the longest sequence runs, one token more does not."""
    loaded = load_model(str(model_folders[kind]), dtype="float32", device="cpu")
    assert loaded.max_context == 128 if kind != "roberta" else 129
    assert inspect_model(str(model_folders[kind]))["max_context"] == loaded.max_context
    ids = torch.randint(3, 200, (1, loaded.max_context + 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loaded.model(ids[:, :-1])
        with pytest.raises((IndexError, RuntimeError)):
            loaded.model(ids)


def test_roberta_records_at_its_longest_context_and_not_beyond(model_folders, tmp_path):
    corpus = make_corpus(tmp_path / "text", documents=30, words=300)

    def trace(length: int) -> None:
        record(
            TraceParams(
                model=str(model_folders["roberta"]),
                out=str(tmp_path / f"rec{length}"),
                layers=(1,),
                text=(str(corpus),),
                tokens=1500,
                context_length=length,
                held_out=0.2,
                dtype="float32",
                device="cpu",
            )
        )

    trace(129)
    with pytest.raises(MicroscopeError) as caught:
        trace(130)
    assert caught.value.code == "context_too_long"
    assert "129" in caught.value.message


def test_rotations_that_depend_on_the_length_are_used_up_to_where_they_change(tmp_path):
    longrope = next(r for r in rotations(4) if r["rope_type"] == "longrope")
    folder = make_model("llama", tmp_path, rope_parameters=longrope)
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    assert loaded.max_context == ORIGINAL
    resident = ResidentModel(loaded)
    with pytest.raises(MicroscopeError) as caught:
        resident.open("s", "peace " * (ORIGINAL + 1))
    assert caught.value.code == "prompt_too_long"


@pytest.mark.parametrize("special", [False, True])
def test_a_token_that_the_model_has_no_row_for_is_named_where_it_occurs(tmp_path, special):
    model = make_model("llama", tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<ticket>"], special_tokens=special)
    tokenizer.save_pretrained(model)
    loaded = load_model(str(model), dtype="float32", device="cpu")
    resident = ResidentModel(loaded)
    resident.open("fine", "the state of the union")
    corpus = make_corpus(tmp_path / "text")
    params: dict[str, Any] = {
        "model": str(model), "layers": (1,), "text": (str(corpus),), "tokens": 10_000, "context_length": 32,
        "held_out": 0.2, "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    record(TraceParams(out=str(tmp_path / "fine"), **params))
    (corpus / "zz.txt").write_text("peace and trade <ticket> for the people " * 10)
    for ask in (
        lambda: resident.open("s", "the <ticket> state"),
        lambda: record(TraceParams(out=str(tmp_path / "rec"), **params)),
    ):
        with pytest.raises(MicroscopeError) as caught:
            ask()
        assert caught.value.code == "no_such_token"
        assert "<ticket>" in caught.value.message
        assert "256" in caught.value.message


def test_encoders_equal_transformers(model_folders):
    for kind in ("bert", "roberta"):
        folder = str(model_folders[kind])
        ids = torch.randint(3, 200, (2, 40), generator=torch.Generator().manual_seed(0))
        loaded = load_model(folder, dtype="float32", device="cpu")
        with torch.inference_mode():
            right = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits
            torch.testing.assert_close(loaded.model(ids).logits, right, rtol=1e-5, atol=1e-5)
