"""The lock files hold everything the project asks for, with hashes, and the tests run on what they list."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contracts.locks import FOLDER, MACHINES, entries, pins

PROJECT = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LISTS = sorted(path.stem for path in FOLDER.glob("*.txt"))
# What each lock file is made from: extras of the project.
EXTRAS = {
    "workbench": ("engine", "embedded", "dev", "s3", "postgres"),
    "web": ("postgres", "s3"),
    "engine": ("engine", "postgres", "s3"),
}


@pytest.mark.parametrize("name", LISTS)
def test_every_package_has_a_version_and_hashes(name: str) -> None:
    listed = entries(name)
    assert listed
    for asked, hashes in listed:
        assert [specifier.operator for specifier in asked.specifier] == ["=="], asked
        assert hashes, asked
        assert all(value.startswith("sha256:") and len(value) == 71 for value in hashes), asked


@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: f"{m['python_version']}-{m['platform_machine']}")
@pytest.mark.parametrize("name", EXTRAS)
def test_what_the_project_asks_for_is_locked(name: str, machine: dict[str, str]) -> None:
    asked = [*PROJECT["dependencies"]]
    for extra in EXTRAS[name]:
        asked += PROJECT["optional-dependencies"][extra]
    locked = pins(name, machine) | pins("torch-gpu", machine)
    for requirement in map(Requirement, asked):
        if requirement.marker is None or requirement.marker.evaluate(machine):  # type: ignore[arg-type]
            version = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (requirement, version)


def test_nothing_locked_lacks_what_it_needs() -> None:
    locked = pins("workbench") | pins("build") | {"torch": pins("torch-gpu")["torch"]}
    for name in locked:
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            pytest.fail(f"{name} is locked and not installed: make test installs it")
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in locked, (name, requirement)


def test_the_tests_run_on_what_is_locked() -> None:
    locked = pins("workbench") | pins("build") | {"torch": pins("torch-gpu")["torch"]}
    installed = {
        canonicalize_name(found.name): found.version.partition("+")[0]
        for found in metadata.distributions()
        if not Path(str(found.locate_file(""))).samefile(FOLDER.parent)
    }
    installed.pop("interpretability-workbench", None)
    assert {name: version for name, version in installed.items() if locked.get(name) != version} == {}
