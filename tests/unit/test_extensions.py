"""Declarations of installed packages: found, validated, and refused one by one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path, PurePath

import pytest

from microscope.errors import MicroscopeError
from microscope.params.extensions import Declaration, Registry, implementation

GROUP = "microscope.tested"
HEAVY = "import sys, types\nTHING = sys.modules['torch'] = types.ModuleType('torch')\n"
THING = "from microscope.params.extensions import Declaration\nTHING = Declaration(name={!r}, description='A thing.')\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Put a distribution with one module and one entry point on the path."""

    def installed(package: str, point: str, source: str, attribute: str = "THING") -> None:
        module = package.replace("-", "_")
        folder = tmp_path / package
        information = folder / f"{module}-1.0.dist-info"
        information.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[{GROUP}]\n{point} = {module}:{attribute}\n")
        monkeypatch.syspath_prepend(str(folder))
        sys.modules.pop(module, None)  # of a test before this one

    return installed


def registry() -> Registry[Declaration]:
    return Registry("thing", GROUP, Declaration, [Declaration(name="own", description="Built in.")])


def test_what_a_package_declares_stands_behind_what_is_built_in(install):
    install("first-package", "early", THING.format("early"))
    found = registry()
    assert list(found) == ["own", "early"]
    assert found.find("early").package == "first-package 1.0"
    assert found["own"].package == ""
    assert found.refused == {}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('out of order')", "out of order"),
        ("import sys; sys.exit('no licence')", "no licence"),
        ("THING = 7", "not a Declaration"),
        (THING.format("another"), "calls itself 'another'"),
        ("OTHER = 1", "THING"),
        (THING.format("bad").replace("'A thing.'", "3"), "Expected `str`, got `int`"),
    ],
)
def test_a_broken_declaration_is_refused_by_its_package_and_takes_no_other_down(
    install, caplog, source, said
):
    install("broken-package", "bad", source)
    install("sound-package", "good", THING.format("good"))
    found = registry()
    assert list(found) == ["own", "good"]
    with pytest.raises(MicroscopeError, match=r"broken-package 1\.0") as error:
        found.find("bad")
    assert error.value.code == "bad_extension"
    assert said in error.value.message
    assert "broken-package 1.0" in caplog.text


def test_a_refusal_keeps_nothing_of_those_it_was_told(install):
    """The registry lives as long as the program; frames hold on to requests and tensors."""
    install("broken-package", "bad", "raise RuntimeError('out of order')")
    found = registry()
    for _ in range(2):
        with pytest.raises(MicroscopeError):
            found.find("bad")
    assert found.refused["bad"].__traceback__ is None


def test_loading_a_declaration_imports_no_torch(install, monkeypatch):
    """The portal loads it, too, and stays small."""
    monkeypatch.delitem(sys.modules, "torch")
    install("heavy-package", "bad", HEAVY)
    assert "loading it imports torch" in registry().refused["bad"].message


def test_of_two_that_clash_the_second_is_refused(install):
    install("a-package", "same", THING.format("same"))
    install("b-package", "same", THING.format("same"))
    install("c-package", "own", THING.format("own"))
    found = registry()
    assert found["same"].package == "a-package 1.0"
    assert found["own"].package == ""
    assert "b-package 1.0" in found.refused["same"].message
    assert "a-package 1.0 already" in found.refused["same"].message
    assert "this program already" in found.refused["own"].message


def test_an_unknown_name_lists_those_that_are_known():
    with pytest.raises(MicroscopeError, match="Known: own") as error:
        registry().find("strange")
    assert error.value.code == "unknown_thing"


def test_an_implementation_that_cannot_be_loaded_names_its_package():
    outside = Declaration(name="far", description="", package="far-package 2.0")
    assert implementation(outside, "pathlib:Path", PurePath) is Path
    for path, base, said in (
        ("no_such_module:Thing", object, "no_such_module"),
        ("pathlib:Path", Mapping, "not derived from Mapping"),
        ("os:getcwd", object, "not derived from object"),
        ("collections.abc:Mapping", Mapping, "leaves out __getitem__, __iter__, __len__"),
    ):
        with pytest.raises(MicroscopeError, match=rf"far-package 2\.0.*{said}") as error:
            implementation(outside, path, base)
        assert error.value.code == "bad_extension"
