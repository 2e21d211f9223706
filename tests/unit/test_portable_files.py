"""Files for others name a model, and not the folder it was in on their maker's machine."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from microscope.activations import Recording, load_recorded_model
from microscope.activations.importing import import_recording, pack_recording
from microscope.bundles import Listing, unpack, write_archive
from microscope.formats import export_sae
from microscope.naming import named_model
from microscope.params import ExportParams, PatchCreateParams
from microscope.params.bundles import BUNDLE_FORMAT, BUNDLE_VERSION, UnpackParams
from microscope.params.files import ImportRecordingParams, PackRecordingParams
from microscope.patching.plan_file import create_patch
from microscope.sae import load_sae


def test_a_packed_recording(recording_folder: Path, model_folders: dict[str, Path], tmp_path: Path) -> None:
    model = model_folders["llama"]
    before = (recording_folder / "manifest.json").read_bytes()
    assert str(model).encode() in before
    pack_recording(PackRecordingParams(activations=str(recording_folder), out=str(tmp_path / "packed")))
    with zipfile.ZipFile(tmp_path / "packed" / "recording.zip") as archive:
        for name in archive.namelist():
            assert str(model.parent).encode() not in archive.read(name), name
    assert (recording_folder / "manifest.json").read_bytes() == before, "one's own stays as it was"

    back = tmp_path / "back"
    import_recording(ImportRecordingParams(path=str(tmp_path / "packed"), model=str(model), out=str(back)))
    recording = Recording(back)
    assert recording.manifest.model.reference == model.name
    assert recording.manifest.fingerprint == Recording(recording_folder).manifest.fingerprint
    # one's own model is found by its weights
    assert load_recorded_model(recording, None, "cpu").reference == str(model.resolve())


def test_an_sae_in_our_own_format(sae_folder: Path, model_folders: dict[str, Path], tmp_path: Path) -> None:
    model = model_folders["llama"]
    assert str(model) in (sae_folder / "sae.json").read_text()
    export_sae(ExportParams(sae_path=str(sae_folder), out=str(tmp_path / "out"), format="native"))
    for file in (tmp_path / "out").iterdir():
        assert str(model.parent).encode() not in file.read_bytes(), file
    sae = load_sae(tmp_path / "out")
    assert sae.config.model["reference"] == model.name
    assert sae.config.fingerprint == load_sae(sae_folder).config.fingerprint
    patch = create_patch(
        PatchCreateParams(sae_path=str(tmp_path / "out"), feature=1, out=str(tmp_path / "patch.json"))
    )
    assert patch.model == str(model.resolve()), "one's own commands find it all the same"


def test_a_project_s_archive(sae_folder: Path, model_folders: dict[str, Path], tmp_path: Path) -> None:
    from microscope.bundles import ListedFile

    files = [ListedFile.of(sae_folder, name) for name in ("sae.safetensors", "sae.json")]
    document = {
        "format": BUNDLE_FORMAT,
        "version": BUNDLE_VERSION,
        "artifacts": {"a": {"kind": "sae", "files": files}},
    }
    write_archive(Listing(document=document, folders={"a": str(sae_folder)}), tmp_path / "project.zip")
    unpack(UnpackParams(path=str(tmp_path / "project.zip"), out=str(tmp_path / "unpacked")))  # digests hold
    folder = tmp_path / "unpacked" / "artifacts" / "a"
    assert str(model_folders["llama"].parent) not in (folder / "sae.json").read_text()
    assert load_sae(folder).content_fingerprint() == load_sae(sae_folder).content_fingerprint()


def test_only_places_are_changed() -> None:
    for reference in ("Qwen/Qwen3-0.6B", "gpt2", ""):
        data = json.dumps({"model": {"reference": reference}, "rest": [1.5]}).encode()
        assert named_model(data) == data
    for reference in ("/home/ada/models/gemma", "../models/gemma/", "C:\\models\\gemma", "./gemma"):
        data = json.dumps({"model": {"reference": reference, "d": 3}, "rest": [1.5, None, "é"]}).encode()
        assert json.loads(named_model(data)) == {
            "model": {"reference": "gemma", "d": 3},
            "rest": [1.5, None, "é"],
        }
    for data in (b"not json", b"[]", b'{"model": "x"}', b'{"model": {"reference": 3}}'):
        assert named_model(data) == data
