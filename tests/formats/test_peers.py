"""Files that the peer packages wrote, read here; files written here, read by the peer packages."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from microscope.errors import MicroscopeError
from microscope.formats import Hints, read_sae, write_sae
from microscope.params import Site
from microscope.sae import Derivation, SaeConfig, SparseAutoencoder, TokenFilter, architecture
from tests.formats.conftest import run_peer
from tests.formats.peer_cases import CASES, TRANSCODERS, Case

pytestmark = pytest.mark.peers

PICKLES = Hints(allow_pickle=True)


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest value."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def dense(sae: SparseAutoencoder, x: torch.Tensor) -> torch.Tensor:
    codes = sae.encode(x)
    return torch.zeros(len(x), sae.config.n_latents).scatter_add_(1, codes.indices, codes.values)


def sites_of(case: Case) -> tuple[str, str | None]:
    """What the files name: a whole block of sparsify reads the output of the one before."""
    if case.library == "sparsify" and case.settings.get("transcode"):
        return "resid_post.2", "resid_post.3"
    if case.settings.get("reshape_activations") == "hook_z":
        return "attn_z.3", None
    return "resid_post.3", "mlp_out.3" if case.kind in TRANSCODERS else None


@pytest.mark.parametrize("name", CASES)
def test_what_a_peer_wrote_is_the_same_here_or_refused(peer_files, name):
    case = CASES[name]
    folder = peer_files / name
    folder = folder / "layers.3" if case.library == "sparsify" else folder
    if case.refused:
        with pytest.raises(MicroscopeError) as caught:
            read_sae(folder, hints=PICKLES)
        assert caught.value.code == case.refused
        assert caught.value.hint or caught.value.code == "unsupported_sae"
        return
    expected = load_file(folder / "expected.safetensors")
    sae = read_sae(folder, hints=PICKLES)
    assert (sae.config.site, sae.config.site_out) == sites_of(case)
    assert_same(sae(expected["x"]), expected["out"])
    assert_same(dense(sae, expected["x"]), expected["acts"])
    assert float((expected["acts"] > 0).float().mean()) > 0.01  # otherwise nothing was compared
    assert sae.config.fingerprint == sae.content_fingerprint()
    assert sae.config.assumed == ()


def test_every_case_is_written_and_most_agree(peer_files):
    assert {path.name for path in peer_files.iterdir()} == set(CASES)
    assert sum(case.refused is None for case in CASES.values()) > len(CASES) / 2


def make(name: str, *, transcoder: bool = False, skip: bool = False, **config: object) -> SparseAutoencoder:
    out = {"site_out": "mlp_out.3", "d_out": 16, "scale_out": 1.7, "apply_b_dec": False} if transcoder else {}
    fields = {
        "architecture": name,
        "d_in": 16,
        "n_latents": 48,
        "k": 5,
        "site": "resid_post.3",
        "scale": 0.6,
        "skip": skip,
        "token_filter": TokenFilter(max_norm=12.625),  # which the peers' readers must pass over
    }
    sae = architecture(name)(SaeConfig(**(fields | out | config))).requires_grad_(False)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    for parameter in sae.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    if hasattr(sae, "threshold_weight"):
        sae.threshold.fill_(0.5)
        sae.threshold_weight.fill_(1.0)
    return sae


OURS = {
    "saelens-topk": ("saelens", make("topk")),
    "saelens-topk-layer-norm": ("saelens", make("topk", input_norm="layer_norm", scale=1.0)),
    "saelens-batchtopk": ("saelens", make("batchtopk")),
    "saelens-matryoshka": ("saelens", make("matryoshka")),
    "saelens-jumprelu": ("saelens", make("jumprelu")),
    "saelens-gated": ("saelens", make("gated")),
    "saelens-standard": ("saelens", make("standard")),
    "saelens-hook_z": ("saelens", make("jumprelu", site="attn_z.3")),
    "saelens-no-pre-bias": ("saelens", make("topk", apply_b_dec=False)),
    "saelens-jumprelu-constant-norm": ("saelens", make("jumprelu", input_norm="constant_norm", scale=1.0)),
    "saelens-transcoder-layer-norm": ("saelens", make("standard", transcoder=True, input_norm="layer_norm")),
    "saelens-skip-constant-norm": (
        "saelens",
        make("jumprelu", transcoder=True, skip=True, input_norm="constant_norm"),
    ),
    "saelens-transcoder": ("saelens", make("standard", transcoder=True)),
    "saelens-skip": ("saelens", make("jumprelu", transcoder=True, skip=True)),
    "sparsify-topk": ("sparsify", make("topk")),
    "sparsify-groupmax": ("sparsify", make("groupmax", k=6)),
    "sparsify-sae-skip": ("sparsify", make("topk", skip=True)),
    "sparsify-transcoder": ("sparsify", make("topk", transcoder=True)),
    "sparsify-skip": ("sparsify", make("topk", transcoder=True, skip=True)),
    "dictionary_learning-topk": ("dictionary_learning", make("topk")),
    "dictionary_learning-mlp": ("dictionary_learning", make("topk", site="mlp_out.3")),
    "dictionary_learning-batchtopk": ("dictionary_learning", make("batchtopk")),
    "dictionary_learning-jumprelu": ("dictionary_learning", make("jumprelu")),
    "dictionary_learning-gated": ("dictionary_learning", make("gated")),
    "dictionary_learning-standard": ("dictionary_learning", make("standard")),
}


@pytest.fixture(scope="module")
def read_by_peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1)) * 2
    for name, (format, sae) in OURS.items():
        write_sae(sae, folder / name, format=format)
        save_file({"x": x}, folder / name / "expected.safetensors")
    run_peer("peer_read.py", folder)
    return folder


@pytest.mark.parametrize("name", OURS)
def test_a_peer_reads_what_we_wrote(read_by_peers, name):
    x = load_file(read_by_peers / name / "expected.safetensors")["x"]
    assert_same(load_file(read_by_peers / name / "peer.safetensors")["out"], OURS[name][1](x))


@pytest.mark.parametrize("name", OURS)
def test_our_own_exports_read_back(tmp_path, name):
    format, sae = OURS[name]
    folder = tmp_path / "layers.3"
    write_sae(sae, folder, format=format)
    # a folder of sparsify's names one module, whose input and output it reads
    ours = format == "sparsify" and sae.config.is_transcoder
    hints = Hints(
        allow_pickle=True,
        site=sae.config.site if ours else None,
        site_out=sae.config.site_out if ours else None,
    )
    again = read_sae(folder, format=format, hints=hints)
    x = torch.randn(20, 16)
    assert_same(again(x), sae(x))
    assert again.config.site == sae.config.site
    assert again.config.site_out == sae.config.site_out


FILTERS = {
    "of the training": TokenFilter(max_norm=83.69),
    "derived": TokenFilter(
        max_norm=80.0,
        derived=Derivation(source="recording", name="4f" * 16, factor=8.0, median_norm=10.0),
    ),
    "trained on every token": TokenFilter(exclude_special=False),
    "unknown": TokenFilter(),
}


@pytest.mark.parametrize("what", FILTERS)
@pytest.mark.parametrize("name", ["saelens-jumprelu", "sparsify-skip", "dictionary_learning-topk"])
def test_the_token_filter_comes_back(tmp_path, name, what):
    format, sae = OURS[name]
    sae = copy.deepcopy(sae)
    sae.config.token_filter = FILTERS[what]
    folder = tmp_path / "layers.3"
    write_sae(sae, folder, format=format)
    again = read_sae(folder, format=format, hints=Hints(allow_pickle=True, site_out=sae.config.site_out))
    assert again.config.token_filter == FILTERS[what]


@pytest.mark.parametrize("stated", ["none", {"max_norm": -1.0}, {"max_norm": float("inf")}, {"derived": 3}])
def test_a_damaged_token_filter_is_refused(tmp_path, stated):
    write_sae(make("topk"), tmp_path, format="saelens")
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["metadata"]["microscope_token_filter"] = stated
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(MicroscopeError) as caught:
        read_sae(tmp_path)
    assert caught.value.code == "bad_sae"
    assert "microscope_token_filter" in caught.value.hint


def test_hook_names_survive_saelens(tmp_path):
    sae = make("topk")
    sae.config.site = str(Site("attn_z", 7))
    write_sae(sae, tmp_path, format="saelens")
    written = json.loads((tmp_path / "cfg.json").read_text())
    assert written["metadata"]["hook_name"] == "blocks.7.attn.hook_z"
    assert written["reshape_activations"] == "hook_z"
    assert read_sae(tmp_path).config.site == "attn_z.7"


@pytest.mark.parametrize(
    ("sae", "format"),
    [
        (make("jumprelu"), "sparsify"),
        (make("topk", transcoder=True), "dictionary_learning"),
        (make("topk", transcoder=True), "saelens"),
        (make("topk"), "gemma_scope"),
        (make("groupmax", k=6), "saelens"),
        (make("groupmax", k=6), "dictionary_learning"),
        (make("topk", skip=True), "saelens"),
        (make("topk", skip=True), "dictionary_learning"),
    ],
)
def test_what_a_format_cannot_say_is_refused(tmp_path, sae, format):
    with pytest.raises(MicroscopeError) as caught:
        write_sae(sae, tmp_path, format=format)
    assert caught.value.code == "cannot_export"
