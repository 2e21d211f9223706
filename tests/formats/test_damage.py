"""Damaged foreign files are refused in words."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import torch

from microscope.errors import MicroscopeError
from tests.formats.foreign import (
    FORMATS,
    NEW_SAELENS,
    D,
    N,
    gemma_tensors,
    rows,
    tensors,
    write,
)
from tests.formats.reading import read, refusal

_DEEP = json.loads("[" * 40 + "]" * 40)
_WRONG: tuple[Any, ...] = (
    *("nonsense", "", -1, 0, 10**9, 10**400, 2.5, -0.0, float("nan"), float("inf"), True, False),
    *([], {}, [1, "a"], {"a": {}}, _DEEP, "5", "\ud800"),
)


def _places(config: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in config.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += _places(value, (*path, key))
    return found


@pytest.mark.parametrize("name", [name for name, (_, config, _t) in FORMATS.items() if config])
def test_any_wrong_value_anywhere_is_read_or_refused_in_words(tmp_path, name):
    """Never a traceback; and what is read still computes finite numbers of the right shape."""
    refused, sentences = 0, set()
    for number, (place, wrong) in enumerate(itertools.product(_places(FORMATS[name][1]), _WRONG)):
        config = copy.deepcopy(FORMATS[name][1])
        inside = config
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = wrong
        try:
            sae = read(write(name, tmp_path / str(number), config=config))
        except MicroscopeError as error:
            refused += 1
            sentences.add(error.message)
        else:
            assert torch.isfinite(sae(rows())).all()
            assert 1 <= max(1, sae.config.k) <= N or sae.config.architecture != "topk"
    assert refused > number / 3
    assert "" not in sentences


def _damages(tensor: torch.Tensor) -> list[torch.Tensor]:
    nan = tensor.contiguous().clone().float()
    nan.view(-1)[0] = float("nan")
    return [
        nan,
        torch.full_like(tensor, float("inf"), dtype=torch.float32),
        torch.zeros(0),
        torch.zeros(3, 5, 7),
        tensor.reshape(-1)[:-1].clone(),
        tensor.to(torch.int64),
        tensor.to(torch.complex64),
        torch.full(tensor.shape, 1e300, dtype=torch.float64),
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_tensors_are_refused(tmp_path, name):
    usual, number = FORMATS[name][2], itertools.count()
    for key in usual:
        if key == "stats_last_nonzero" or (key == "threshold" and name == "dictionary_learning"):
            continue  # statistics that nothing depends on
        without = {k: v for k, v in usual.items() if k != key}
        damaged = [without] if key != "k" else []
        damaged += [{**usual, key: bad} for bad in _damages(usual[key]) if key != "k" or bad.is_complex()]
        for found in damaged:
            path = tmp_path / str(next(number))
            if name == "gemma_scope" and any(t.dtype == torch.complex64 for t in found.values()):
                continue  # numpy and torch agree on these; the next case covers them
            error = refusal(write(name, path, found=found))
            assert error.code in ("bad_sae", "unsupported_sae"), (key, error)
    extra = {**usual, "unexpected": torch.zeros(2)}
    error = refusal(write(name, tmp_path / "extra", found=extra))
    assert (error.code, "unexpected" in error.message) == ("unknown_setting", True)
    assert (
        "unexpected: a tensor"
        in read(write(name, tmp_path / "again", found=extra), "unexpected").config.assumed[0]
    )


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"a": 1} 2', "\ud800"])
def test_configurations_that_are_none(tmp_path, text):
    path = write("saelens", tmp_path)
    (path / "cfg.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert refusal(path).code == "bad_sae"


def test_weights_that_are_none(tmp_path):
    path = write("saelens", tmp_path / "a")
    whole = (path / "sae_weights.safetensors").read_bytes()
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", whole[:-7], whole[:20]):
        (path / "sae_weights.safetensors").write_bytes(content)
        assert refusal(path).code == "bad_sae"
    gemma = write("gemma_scope", tmp_path / "b", found=gemma_tensors(lower=False))
    for content in (b"", b"PK\x03\x04", (gemma / "params.npz").read_bytes()[:-200]):
        (gemma / "params.npz").write_bytes(content)
        assert refusal(gemma).code == "bad_sae"


def test_matrices_that_belong_to_another_configuration(tmp_path):
    for number, (key, value) in enumerate({"d_in": D + 1, "d_sae": N - 1}.items()):
        error = refusal(write("saelens", tmp_path / str(number), **{key: value}))
        assert (error.code, key in error.message) == ("bad_sae", True)
    turned = {**FORMATS["saelens"][2], "W_enc": tensors()["W_enc"]}
    config = {k: v for k, v in NEW_SAELENS.items() if not k.startswith("d_")}
    assert refusal(write("saelens", tmp_path / "t", config=config, found=turned)).code == "bad_sae"
