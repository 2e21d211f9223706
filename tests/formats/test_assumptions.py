"""What a person says of foreign files: taken, kept with the SAE, and refused where it is about nothing."""

from __future__ import annotations

from typing import Any

import pytest

from microscope.errors import MicroscopeError
from microscope.formats import import_sae, write_sae
from microscope.params import ImportParams
from microscope.sae import load_sae, save_sae
from tests.formats.foreign import (
    DICTIONARY,
    FORMATS,
    NEW_SAELENS,
    K,
    write,
)
from tests.formats.reading import read, refusal


def test_what_was_assumed_stays_with_the_sae(tmp_path):
    path = write("sparsify", tmp_path, multi_topk=True, warp=3)
    assert refusal(path, "multi_topk=false").code == "unknown_setting"
    sae = read(path, "multi_topk=false", "warp", "k=12")
    assert sae.config.k == 12
    told = (
        "multi_topk: true in cfg.json, read as false",
        "k: 3 in cfg.json, read as 12",
        "warp: 3 in cfg.json, taken not to change the function",
    )
    assert set(sae.config.assumed) == set(told)
    for format in ("native", "saelens", "sparsify", "dictionary_learning"):
        folder = tmp_path / format / "layers.2"
        write_sae(sae, folder, format=format)
        assert read(folder).config.assumed == sae.config.assumed


def test_assumptions_reach_the_import_and_its_report(tmp_path):
    path = write("saelens_old", tmp_path / "theirs", warp=[1, 2])
    params = ImportParams(path=str(path), out=str(tmp_path / "ours"), assume=("warp",))
    result = import_sae(params)
    assert result["assumed"] == ["warp: [1, 2] in cfg.json, taken not to change the function"]
    assert load_sae(tmp_path / "ours").config.assumed == tuple(result["assumed"])


@pytest.mark.parametrize("assume", ["nothing_of_this_name", "other=1", "=3", ""])
def test_an_assumption_about_nothing_is_refused(tmp_path, assume):
    assert refusal_code(lambda: read(write("saelens_old", tmp_path), assume)) == "bad_assumption"


def refusal_code(action: Any) -> str:
    with pytest.raises(MicroscopeError) as caught:
        action()
    return caught.value.code


def test_a_number_of_winners_that_is_missing_or_contradicts(tmp_path):
    config = {k: v for k, v in NEW_SAELENS.items() if k != "k"}
    path = write("saelens", tmp_path / "a", config=config)
    assert refusal(path).code == "k_unknown"
    assert read(path, k=K).config.k == K
    assert refusal(write("saelens", tmp_path / "b"), k=K + 1).code == "k_conflict"
    assert read(tmp_path / "b", f"k={K + 1}").config.k == K + 1
    trainer = {**DICTIONARY["trainer"], "k": K + 1}
    assert refusal(write("dictionary_learning", tmp_path / "c", trainer=trainer)).code == "bad_sae"


def test_what_a_person_says_about_an_sae_that_has_no_such_thing_is_refused(tmp_path):
    plain = write("saelens_old", tmp_path / "a")
    assert refusal(plain, k=K).code == "k_conflict"
    assert refusal(plain, site_out="mlp_out.2").code == "site_conflict"
    native = save_sae(read(plain), tmp_path / "b")
    for code, said in (("site_conflict", {"site": "resid_post.1"}), ("k_conflict", {"k": K})):
        error = refusal(native, **said)
        assert error.code == code
        assert error.hint
    assert read(native, site="blocks.3.hook_resid_pre").config.site == "resid_post.2"


@pytest.mark.parametrize("name", FORMATS)
def test_files_that_were_not_fetched_are_called_pointers(tmp_path, name):
    path = write(name, tmp_path / "a")
    for file in [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]:
        kept = file.read_bytes()
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        error = refusal(path)
        assert file.name in error.message
        assert "git lfs pull" in error.hint
        file.write_bytes(kept)
