"""Where commands write: places that cannot be used, and a disk that fills up, are refused and leave what was there."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from microscope.cli import main
from microscope.errors import MicroscopeError
from microscope.params import Edit, EditPlan, ExitCode, FeatureRef
from microscope.patching.plan_file import PatchFile, write_patch
from microscope.sae import SparseAutoencoder, load_sae, save_sae
from microscope.staging import PREFIX, staged
from tests.engine_fixtures import LAYER

COMMANDS = (
    "train",
    "eval",
    "compare",
    "features",
    "export",
    "export_sparsify",
    "import",
    "patch",
    "pack",
    "corpus",
)


@pytest.fixture(scope="module")
def commands(tmp_path_factory, recording_folder, sae_folder, corpus, model_folders) -> dict[str, list[str]]:
    """The arguments of commands that write into a folder, without that folder."""
    root = tmp_path_factory.mktemp("inputs")
    done = CliRunner().invoke(main, ["export", "--sae-path", str(sae_folder), "--out", str(root / "theirs")])
    assert done.exit_code == 0, done.output
    other = save_sae(load_sae(sae_folder), root / "other")
    sae = load_sae(sae_folder)
    plan = EditPlan(
        edits=(
            Edit(
                kind="ablate", site=sae.config.site, feature=FeatureRef(sae=sae.config.fingerprint, index=3)
            ),
        )
    )
    patch = PatchFile(
        plan=plan, model=str(model_folders["llama"]), saes={sae.config.fingerprint: str(sae_folder)}
    )
    write_patch(patch, root / "patch.json")
    both = ["--sae-path", str(sae_folder), "--activations", str(recording_folder)]
    text = next(path for path in sorted(Path(corpus).rglob("*")) if path.is_file())
    return {
        "train": ["train", "--activations", str(recording_folder), "--layer", str(LAYER), "--width", "64",
                  "--k", "4", "--tokens", "4k", "--batch-size", "200", "--device", "cpu"],
        "eval": ["eval", *both, "--loss-contexts", "0", "--device", "cpu"],
        "compare": ["compare", "--sae-path", str(sae_folder), str(other), *both[2:], "--loss-contexts", "0",
                    "--device", "cpu"],
        "features": ["features", *both, "--device", "cpu"],
        "export": ["export", "--sae-path", str(sae_folder)],
        "export_sparsify": ["export", "--sae-path", str(sae_folder), "--format", "sparsify"],
        "import": ["import", "--path", str(root / "theirs"), "--activations", str(recording_folder),
                   "--device", "cpu"],
        "patch": ["patch", "export", "--patch", str(root / "patch.json"), "--target", "bundle", "--device", "cpu"],
        "pack": ["recording", "pack", "--activations", str(recording_folder)],
        "corpus": ["corpus", "import", "--path", str(text)],
    }  # fmt: skip


def invoke(arguments: list[str], out: Path) -> tuple[int, str]:
    """Status and what was said."""
    done = CliRunner().invoke(main, [*arguments, "--out", str(out)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, re.sub(r"\s+", " ", done.output)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_places_that_cannot_be_used(commands, command, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "below", Path("/proc/none/out"), tmp_path / ("x" * 300)):
        status, said = invoke(commands[command], place)
        assert (status, "(bad_output)" in said) == (ExitCode.REFUSED, True), said
        assert str(place)[:40] in said.replace(" ", "") or place.name[:40] in said.replace(" ", "")
    assert contents(tmp_path) == {"file": b"mine"}


class SmallDisk:
    """A disk of two megabytes on which some room is left."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._ballast = folder, folder / "ballast"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"A disk of two megabytes is needed; run the tests as root. {done.stderr}")

    def fill(self, room: int) -> None:
        """Leave so many bytes."""
        with self._ballast.open("wb", buffering=0) as file:
            free = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize
            file.write(bytes(max(free - room, 0)))

    def read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[SmallDisk]:
    made = SmallDisk(tmp_path / "disk")
    try:
        yield made
    finally:
        made.unmount()


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "corpus"])
def test_a_full_disk(commands, command, disk) -> None:
    """Nothing that looks complete is left, and what an earlier run wrote stays as it was."""
    out = disk.folder / "out"
    disk.fill(8192)
    status, said = invoke(commands[command], out)
    assert (status, "(disk_full)" in said) == (ExitCode.REFUSED, True), said
    left = contents(out) if out.exists() else {}
    assert {Path(name).name for name in left} & {
        "sae.json",
        "report.json",
        "cfg.json",
        "export.json",
    } == set()
    assert [name for name in left if PREFIX in name or name.endswith((".tmp", ".part", ".zip"))] == []
    (disk.folder / "ballast").unlink()
    if command == "train":
        commands = {command: [*commands[command], "--resume"]}
    status, said = invoke(commands[command], out)
    assert status == ExitCode.OK, said
    if command in ("train", "import"):  # an SAE is not replaced
        return
    before = contents(out)
    disk.fill(8192)
    status, said = invoke(commands[command], out)
    assert (status, "(disk_full)" in said) == (ExitCode.REFUSED, True), said
    assert contents(out) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_may_only_be_read(commands, command, disk) -> None:
    disk.read_only()
    status, said = invoke(commands[command], disk.folder / "out")
    assert status == ExitCode.REFUSED, said
    assert "(bad_output)" in said, said


def test_results_appear_together(tmp_path) -> None:
    out = tmp_path / "a" / "b"

    def write(text: str, *, fail: bool) -> None:
        with staged(out, last=("manifest",)) as work:
            (work / "manifest").write_text(text)
            (work / "part").mkdir()
            (work / "part" / "data").write_text(text)
            if fail:
                raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="space"):
        write("first", fail=True)
    assert list(tmp_path.iterdir()) == [], "nor the folders it would have been in"
    write("first", fail=False)
    assert contents(out) == {"manifest": b"first", "part/data": b"first"}
    (out / "note").write_text("mine")
    (out / f"{PREFIX}killed").mkdir()
    with pytest.raises(OSError, match="space"):
        write("second", fail=True)
    whole = {"manifest": b"first", "part/data": b"first", "note": b"mine"}
    assert contents(out) == whole
    write("second", fail=False)
    assert contents(out) == {"manifest": b"second", "part/data": b"second", "note": b"mine"}
    assert sorted(path.name for path in out.iterdir()) == ["manifest", "note", "part"]


def test_an_sae_is_never_of_two_runs(sae: SparseAutoencoder, tmp_path, monkeypatch) -> None:
    """Killed while it is replaced: its folder holds no SAE rather than weights of one with the settings of another."""
    save_sae(sae, tmp_path)
    whole, calls = os.replace, []

    def replace(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        whole(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save_sae(sae, tmp_path)
    monkeypatch.undo()
    with pytest.raises(MicroscopeError) as caught:
        load_sae(tmp_path)
    assert caught.value.code == "no_sae"


def test_a_patch_export_takes_nobodys_folder(commands, tmp_path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one").write_text("mine")
    status, said = invoke(commands["patch"], tmp_path)
    assert (status, "(output_not_empty)" in said) == (ExitCode.REFUSED, True), said
    assert contents(tmp_path) == {"letters/one": b"mine"}
