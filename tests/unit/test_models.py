"""Loading models, naming their sites, and running ranges of their blocks."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from microscope.activations.forward import SiteReader
from microscope.errors import MicroscopeError
from microscope.models import FAMILIES, inspect_model, load_model, memory, runner_for
from microscope.models.runner import GrowingKeyValue, run_blocks
from microscope.models.runner.product import packers
from microscope.params import SITE_KINDS, Site
from tests.docs.examples import spans
from tests.tiny_models import ENCODERS, KINDS, config_of, make_model

DECLARED = {kind for family in FAMILIES for kind in family.model_types}


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 200, (rows, length), generator=torch.Generator().manual_seed(seed))


def everything(runner, ids):
    rows = runner.rows(ids)
    return run_blocks(runner, runner.embed(rows), rows, 0, runner.n_layers)


def read(loaded, sites, ids):
    with SiteReader(loaded, sites) as reader:
        caught = reader.read(ids, torch.ones_like(ids, dtype=torch.bool))
    return {Site.parse(name).kind: value for name, value in caught.items()}


def test_sites_hold_what_their_names_say(tiny):
    """Block outputs equal Hugging Face's own hidden states, and the parts of a block add up."""
    ids = tokens(2, 11)
    parallel = tiny.family.parts.between is None
    with torch.no_grad():
        hidden = tiny.model(ids, output_hidden_states=True).hidden_states
    for layer in range(tiny.n_layers):
        kinds = [k for k in SITE_KINDS if not (parallel and k == "resid_mid")]
        got = read(tiny, [Site(kind, layer) for kind in kinds], ids)
        before = hidden[layer]
        if parallel:
            torch.testing.assert_close(
                got["resid_post"], before + got["attn_out"] + got["mlp_out"], rtol=1e-5, atol=1e-5
            )
        else:
            torch.testing.assert_close(got["resid_mid"], before + got["attn_out"], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(
                got["resid_post"], got["resid_mid"] + got["mlp_out"], rtol=1e-5, atol=1e-5
            )
        if layer + 1 < tiny.n_layers:  # the last hidden state is normed
            torch.testing.assert_close(got["resid_post"], hidden[layer + 1], rtol=0, atol=0)
        block = tiny.model.get_submodule(f"{tiny.family.blocks}.{layer}")
        for projection, norm, site, written in (
            (tiny.family.parts.attention_projection, tiny.family.parts.attention, "attn_z", "attn_out"),
            (tiny.family.parts.mlp_projection, tiny.family.parts.mlp, "mlp_act", "mlp_out"),
        ):
            with torch.no_grad():
                out = block.get_submodule(projection)(got[site])
                if "layernorm" in norm:  # sandwich norms stand between the projection and the stream
                    out = block.get_submodule(norm)(out)
            torch.testing.assert_close(out, got[written], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_sites_of_encoders(kind, model_folders):
    """Post-norm blocks: attention and MLP are normed with the stream; padding changes nothing for real tokens."""
    loaded = load_model(str(model_folders[kind]), dtype="float32", device="cpu")
    ids = tokens(1, 9)
    block = loaded.model.get_submodule(f"{loaded.family.blocks}.1")
    with torch.no_grad():
        hidden = loaded.model(ids, output_hidden_states=True).hidden_states
        got = read(loaded, [Site(kind, 1) for kind in SITE_KINDS], ids)
        torch.testing.assert_close(got["resid_post"], hidden[2], rtol=0, atol=0)
        mid = block.attention.output.LayerNorm(hidden[1] + got["attn_out"])
        torch.testing.assert_close(got["resid_mid"], mid, rtol=1e-5, atol=1e-5)
        post = block.output.LayerNorm(mid + got["mlp_out"])
        torch.testing.assert_close(got["resid_post"], post, rtol=1e-5, atol=1e-5)
        padded = torch.cat((ids, ids[:, :4]), 1)
        with SiteReader(loaded, [Site("resid_post", 1)]) as reader:
            out = reader.read(padded, torch.arange(13)[None] < 9)["resid_post.1"]
        torch.testing.assert_close(out[:, :9], got["resid_post"], rtol=1e-5, atol=1e-5)


def test_parallel_blocks_have_no_middle(model_folders):
    loaded = load_model(str(model_folders["gpt_neox"]), dtype="float32", device="cpu")
    with pytest.raises(MicroscopeError, match="parallel"):
        read(loaded, [Site("resid_mid", 1)], tokens(1, 3))


def test_reading_a_low_site_runs_nothing_above_it(llama):
    ran, hooks = [], dict(llama.model.model.layers[1]._forward_hooks)
    handles = [
        layer.register_forward_hook(lambda *_, n=n: ran.append(n))
        for n, layer in enumerate(llama.model.model.layers)
    ]
    with SiteReader(llama, [Site("resid_post", 1)]) as reader:
        reader.read(tokens(1, 5), torch.ones(1, 5, dtype=torch.bool))
    for handle in handles:
        handle.remove()
    assert ran[-1] <= 1
    assert dict(llama.model.model.layers[1]._forward_hooks) == hooks  # transformers may have some of its own


def test_windows_that_several_threads_read_are_what_each_is_alone(tiny):
    windows = [
        w[:length].numpy() for w, length in zip(tokens(7, 24), (24, 24, 19, 12, 12, 5, 1), strict=True)
    ]
    sites = [Site("resid_post", 0), Site("mlp_out", tiny.n_layers - 1)]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with SiteReader(tiny, sites) as reader:
            together = [reader.read_windows(windows) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    with SiteReader(tiny, sites) as reader:
        for number, window in enumerate(windows):
            ids = torch.from_numpy(window)[None]
            for name, alone in reader.read(ids, torch.ones_like(ids, dtype=torch.bool)).items():
                for found in together:
                    np.testing.assert_allclose(
                        found[name][number].values, alone[0].numpy(), rtol=2e-3, atol=2e-3
                    )
                    np.testing.assert_allclose(
                        found[name][number].norm, alone[0].norm(dim=1).numpy(), rtol=1e-5, atol=1e-6
                    )


def test_runner_equals_the_hugging_face_forward(tiny):
    runner, ids = runner_for(tiny), tokens(2, 17)
    with torch.inference_mode():
        expected = tiny.model(ids).logits
        out = runner.head(everything(runner, ids))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("start", [1, 5, 16])
def test_runner_continues_from_any_position(tiny, start):
    """Rows from ``start`` on, with the keys and values before them, equal the whole run's rows."""
    runner, ids = runner_for(tiny), tokens(1, 17)
    with torch.inference_mode():
        whole, rest = runner.rows(ids), runner.rows(ids, start)
        x, part = runner.embed(whole), runner.embed(rest)
        for layer in range(runner.n_layers):
            x, past = runner.block(layer, x, whole, None)
            part, new = runner.block(layer, part, rest, past.upto(start))
            torch.testing.assert_close(part, x[:, start:], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(new.key, past.key[:, :, start:], rtol=1e-5, atol=1e-5)


def test_a_block_alone_gives_its_last_row_and_everybodys_keys(tiny):
    runner, ids = runner_for(tiny), tokens(1, 17)
    with torch.inference_mode():
        x = runner.embed(runner.rows(ids))
        for start in (0, 9, 16):
            before, rest = runner.rows(ids[:, :start]), runner.rows(ids, start)
            for layer in (0, runner.n_layers - 1):
                past = None if start == 0 else runner.block(layer, x[:, :start], before, None)[1]
                whole, pairs = runner.block(layer, x[:, start:], rest, past)
                last, same = runner.last_row(layer, x[:, start:], rest, past)
                torch.testing.assert_close(last, whole[:, -1:], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(same.key, pairs.key, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(same.value, pairs.value, rtol=1e-5, atol=1e-5)


def test_keys_that_grow_in_place_are_the_same_and_leave_what_they_began_with(tiny):
    """Token by token through storage of one's own, past its first room, and over a token written before."""
    runner, ids = runner_for(tiny), tokens(1, 17)
    with torch.inference_mode():
        x = runner.embed(runner.rows(ids))
        expected, _ = runner.block(1, x, runner.rows(ids), None)
        _, begin = runner.block(1, x[:, :3], runner.rows(ids[:, :3]), None)
        copies = [t.clone() for t in begin]
        growing = GrowingKeyValue(begin, room=2)
        for row in (3, 4, 5, 5, *range(6, 17)):
            one = runner.rows(ids[:, : row + 1], row)
            out, _ = runner.block(1, x[:, row : row + 1], one, growing)
            torch.testing.assert_close(out[0, 0], expected[0, row], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(begin, copies, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "llama-bias", "gpt2", "gemma2", "gemma3", "gpt_neox"])
def test_packed_weights_compute_the_same(family, dtype, model_folders):
    loaded = load_model(str(model_folders[family]), dtype=dtype, device="cpu")
    runner, ids = runner_for(loaded), tokens(1, 17)

    def logits() -> torch.Tensor:
        return runner.head(everything(runner, ids)).float()

    with torch.inference_mode():
        before = logits()
        sizes = [product.nbytes for product in runner.products]
        assert runner.pack(sizes[0]) == sizes[0]  # the budget is kept
        assert runner.pack(10**9) == sum(sizes[1:])  # and nothing is packed twice
        assert runner.pack(10**9) == 0
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        assert (logits() - before).norm() <= tolerance * before.norm()
        one = runner.rows(ids[:, :1])
        few = runner.head(runner.block(0, runner.embed(one), one, None)[0])
        assert few.isfinite().all()
    # where gradients are wanted the plain weights are used
    rows = runner.rows(ids)
    x = runner.embed(rows).clone().requires_grad_()
    runner.block(0, x, rows, None)[0].float().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_kernels_that_pack_weights_are_there():
    """At least those of oneDNN, which torch has on every processor that is supported; Intel's are for float32."""
    assert "onednn" in packers(torch.ones(2, 2))
    assert set(packers(torch.ones(2, 2, dtype=torch.bfloat16))) == {"onednn"}
    assert packers(torch.ones(2, 2, dtype=torch.float64)) == {}


@pytest.mark.parametrize("library", packers(torch.ones(2, 2)))
def test_each_layout_of_a_weight_serves_any_number_of_rows(library):
    packer = packers(torch.ones(2, 2))[library]
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for out, into in ((5, 3), (96, 64), (300, 129)):
            weight, bias = (torch.randn(*s, generator=generator) for s in ((out, into), (out,)))
            for given in (bias, None):
                packed = packer(weight, given)
                for rows in (1, 2, 3, 8, 17, 64, 129, 500):
                    x = torch.randn(2, rows, into, generator=generator)
                    for some in (x, x[:, -1:], x[1:, ::2]):
                        expected = F.linear(
                            some.double(), weight.double(), None if given is None else given.double()
                        )
                        torch.testing.assert_close(packed(some).double(), expected, rtol=1e-5, atol=1e-4)


def test_fusing_weights_leaves_the_model_as_it_was(model_folders):
    loaded = load_model(str(model_folders["qwen2"]), dtype="float32", device="cpu")
    ids, before = tokens(1, 9), {k: v.clone() for k, v in loaded.model.state_dict().items()}
    with torch.inference_mode():
        logits = loaded.model(ids).logits
        runner_for(loaded)
        assert torch.equal(loaded.model(ids).logits, logits)
    assert all(torch.equal(before[k], v) for k, v in loaded.model.state_dict().items())


def test_fingerprint_is_the_weights_not_the_precision(model_folders, tmp_path):
    folder = str(model_folders["llama"])
    full, half = (load_model(folder, dtype=d, device="cpu").fingerprint for d in ("float32", "bfloat16"))
    other = load_model(
        str(make_model("llama", tmp_path / "other", seed=1)), dtype="float32", device="cpu"
    ).fingerprint
    assert full == half != other


def test_inspect_reads_no_weights(model_folders, tmp_path):
    shutil.copy(model_folders["llama"] / "config.json", tmp_path / "config.json")
    facts = inspect_model(str(tmp_path))
    loaded = load_model(str(model_folders["llama"]), dtype="float32", device="cpu")
    assert facts["parameters"] == loaded.parameters
    assert (facts["n_layers"], facts["d_model"], facts["vocab_size"]) == (4, 32, 256)


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("no/such-model-anywhere", "unknown_model"),
        ("/no/such/folder", "unknown_model"),
        ("../../etc", "unknown_model"),
        ("missing.gguf", "unknown_model"),
    ],
)
def test_unknown_models_are_named_and_explained(reference, code, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MicroscopeError) as caught:
        load_model(reference)
    assert caught.value.code == code
    assert reference in caught.value.message
    assert caught.value.hint


def test_files_that_are_no_models(tmp_path, model_folders):
    fake = tmp_path / "model.gguf"
    fake.write_bytes(b"\x80\x04pickle")
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(fake))
    assert caught.value.code == "wrong_file_type"
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(tmp_path))
    assert caught.value.code == "unknown_model"
    broken = shutil.copytree(model_folders["llama"], tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(broken))
    assert caught.value.code == "bad_model_file"


def test_a_model_that_does_not_fit_is_refused_with_numbers(model_folders, monkeypatch):
    monkeypatch.setattr(memory, "bytes_free", lambda device, **_: 100_000_000)
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(model_folders["llama"]))
    assert caught.value.code == "model_too_big"
    assert "0.1 GB are free" in caught.value.message


def test_every_declared_type_is_tested_on_a_model_of_it():
    assert {config_of(kind).model_type for kind in (*KINDS, *ENCODERS)} == DECLARED


def test_types_of_models_that_the_documents_name_are_the_declared_ones():
    named = set(spans("docs/how-to.md")) & set(CONFIG_MAPPING_NAMES)
    assert named == DECLARED


def test_types_that_transformers_does_not_know_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(tmp_path))
    assert caught.value.code == "unsupported_family"
    assert "no-such-type" in caught.value.message
    assert transformers.__version__ in caught.value.message
    assert len(set(SITE_KINDS)) == 6
