"""Kinds of edits: each is whole, one file adds one, other packages add theirs, and no plan ever changes its name."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from textwrap import dedent

import msgspec
import pytest
import torch

from microscope.errors import MicroscopeError
from microscope.params import (
    Edit,
    EditPlan,
    FeatureRef,
    ModelTraits,
    PatchCreateParams,
    Positions,
    edit_kinds,
    field_specs,
    plan_fingerprint,
    validate_plan,
    verdict,
)
from microscope.params.edit_kinds import EditKind
from microscope.params.schema import schema_components
from microscope.patching import edits_by_layer, kinds
from microscope.patching.export.bundle import loader, write_bundle
from microscope.patching.hooks import PatchedModel
from microscope.patching.mechanisms import (
    ActivationKind,
    DirectionKind,
    ModulesKind,
    ReconstructionKind,
    WritersKind,
)
from microscope.sae import SaeConfig, architecture

FINGERPRINTS = json.loads(Path(__file__).with_name("plan_fingerprints.json").read_text())

HALVE = dedent('''
    """``halve``: x − ½·f·d."""

    from microscope.patching.mechanisms import ActivationKind

    class Halve(ActivationKind, frozen=True):
        @staticmethod
        def change(f, amount):
            return -0.5 * f

    KIND = Halve(
        name="halve",
        title="Halve",
        description="halves what the feature writes",
        formula="x − ½·f·d",
        sentence="halve {target}",
        needs_firing=True,
    )
''')


@pytest.fixture(autouse=True)
def found_anew():
    """Kinds are looked for once in a process; tests that add some begin and end with a fresh look."""
    edit_kinds.cache_clear()
    yield
    edit_kinds.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with one module and its kinds of edits on the path."""

    def installed(package: str, source: str, *points: str) -> Path:
        module, folder = package.replace("-", "_"), tmp_path / package
        information = folder / f"{module}-1.0.dist-info"
        information.mkdir(parents=True)
        (folder / f"{module}.py").write_text(source)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "\n".join(f"{point} = {module}:KIND" for point in points)
        (information / "entry_points.txt").write_text(f"[microscope.edits]\n{lines}\n")
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return installed


def sae_with_edit(kind: str, width: int = 8, **rest: object):
    config = SaeConfig(architecture="topk", d_in=width, n_latents=16, k=4, site="resid_post.1")
    sae = architecture("topk")(config)
    sae = sae.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae, Edit(kind=kind, site="resid_post.1", feature=FeatureRef(sae="s", index=6), **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("fingerprint", {row[0] for row in FINGERPRINTS})
def test_no_plan_changes_its_fingerprint(fingerprint):
    """Computed before kinds had files of their own."""
    plans = [plan for known, plan in FINGERPRINTS if known == fingerprint]
    for plan in plans:
        assert plan_fingerprint(msgspec.convert(plan, type=EditPlan)) == fingerprint


def test_the_fingerprints_cover_every_kind():
    assert {edit["kind"] for _, plan in FINGERPRINTS for edit in plan["edits"]} >= set(edit_kinds())


def test_the_documentation_lists_every_kind_as_it_is():
    text = (Path(__file__).parents[2] / "docs/concepts.md").read_text()
    rows = [f"| `{kind.name}` | {kind.formula} | {kind.description} |\n" for kind in edit_kinds().values()]
    assert "".join(rows) in text


def test_kinds_are_loaded_without_torch():
    code = "import sys; from microscope.params import edit_kinds; assert len(edit_kinds()) > 8; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["title", "description", "formula", "sentence", "refers_to", "acts"])
def test_a_kind_says_what_the_browser_shows(name):
    facts = {
        part: part
        for part in ("name", "title", "description", "formula", "sentence", "refers_to", "acts")
        if part != name
    }
    with pytest.raises(TypeError, match=name):
        EditKind(**facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("base", "parts"),
    [
        (ActivationKind, {"change"}),
        (DirectionKind, {"change", "why_fitted"}),
        (ModulesKind, {"factors", "identity", "form_in", "judge"}),
        (WritersKind, {"direction", "identity", "form_in", "judge"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_part_that_is_left_out_is_named(base, parts):
    """For every part a base asks for: a kind with all others is refused, and the refusal names kind and part."""
    whole_parts = dict.fromkeys(parts, lambda *_: None) | (
        {"change": staticmethod(change)} if "change" in parts else {}
    )
    for left_out in parts:
        given = {part: made for part, made in whole_parts.items() if part != left_out}
        partial = type("Partial", (base,), given)(
            name="partial", title="P", description="d", formula="f", sentence="s", **_reference(base)
        )
        with pytest.raises(TypeError, match=f"'partial' leaves out {left_out}$"):
            partial.check()
    whole = type("Whole", (base,), whole_parts)
    whole(name="whole", title="P", description="d", formula="f", sentence="s", **_reference(base)).check()


def change(*_):
    """The arithmetic of the kind above."""


def _reference(base: type) -> dict[str, str]:
    return {"refers_to": "adapter"} if base in (ModulesKind, WritersKind) else {}


@pytest.mark.parametrize("base", [ActivationKind, DirectionKind, ReconstructionKind])
def test_the_bases_let_the_fingerprint_cover_all_that_an_edit_can_say(base):
    """A kind that says nothing of its own about it: two edits that differ are never taken for each other."""
    kind = base(name="new", title="N", description="d", formula="f", sentence="s")
    edit = Edit(kind="new", site="resid_post.1", feature=FeatureRef(sae="s", index=1), sae="t", strength=1.0)
    changes = {
        "site": "resid_post.2",
        "feature": FeatureRef(sae="s", index=2),
        "strength": 2.0,
        "unit": "p999",
        "unit_value": 3.0,
        "positions": Positions(include_sinks=True),
    }
    if kind.refers_to == "sae":
        changes["sae"] = "u"
    for name, value in changes.items():
        assert kind.identity(msgspec.structs.replace(edit, **{name: value})) != kind.identity(edit), name


def test_adding_a_kind_is_adding_a_file(tmp_path, monkeypatch):
    """Choices, schemas, validation, verdicts, the live change and the loader of bundles follow from the file."""
    (tmp_path / "halve.py").write_text(HALVE)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{kinds.__name__}.halve", raising=False)
    sae, edit = sae_with_edit("halve")
    plan = EditPlan(edits=(edit,))
    validate_plan(plan, n_layers=4)
    choices = next(spec.choices for spec in field_specs(PatchCreateParams) if spec.name == "kind")
    _, components = schema_components([EditPlan], "#/{name}")
    assert "halve" in choices
    assert "halve" in components["Edit"]["properties"]["kind"]["enum"]
    traits = ModelTraits(model_type="llama", n_layers=4)
    assert verdict(plan, traits, "bundle").grade == "exact"
    assert verdict(plan, traits, "merged").grade == "approximate"
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    delta, _ = edits_by_layer(plan)[1].delta(x, {"s": sae}, torch.zeros(50, dtype=torch.bool))
    ablated, _ = edits_by_layer(EditPlan(edits=(msgspec.structs.replace(edit, kind="ablate"),)))[1].delta(
        x, {"s": sae}, torch.zeros(50, dtype=torch.bool)
    )
    assert delta is not None
    assert ablated is not None
    assert torch.equal(delta, ablated / 2)
    assert delta.any()
    namespace: dict[str, object] = {"__name__": "load_patch"}
    exec(compile(loader(), "load_patch.py", "exec"), namespace)
    assert torch.equal(namespace["CHANGES"]["halve"](x, 1.0), -0.5 * x)  # type: ignore[index]


def test_a_kind_of_another_package_stands_behind_the_own_ones_and_is_brought_along(install):
    install("halving", HALVE, "halve")
    assert list(edit_kinds())[-1] == "halve"
    assert edit_kinds()["halve"].package == "halving 1.0"
    assert "change_halve" in loader(["halve"])
    assert "change_halve" not in loader()


@torch.no_grad()
def test_a_bundle_with_a_kind_of_another_package_does_what_the_hooks_do(install, llama, tmp_path):
    """And without it: the loader is loaded in a process that has neither the package nor this program's kinds."""
    install("halving", HALVE, "halve")
    sae, edit = sae_with_edit("halve", width=llama.d_model)
    sae.b_dec.zero_()
    sae.b_enc[edit.index] = 3.0  # it fires
    plan, ids = (
        EditPlan(edits=(edit,)),
        torch.randint(3, 150, (3, 12), generator=torch.Generator().manual_seed(0)),
    )
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, llama, plan, {"s": sae}, {})
    live, fired = PatchedModel(llama, plan, {"s": sae}, {})(ids)
    assert fired.any()
    torch.save(ids, tmp_path / "ids.pt")
    code = (
        "import sys; sys.modules['microscope'] = None\n"
        "import torch; from transformers import AutoModelForCausalLM; from load_patch import attach\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()\n"
        "attach(model, sys.argv[2]); ids = torch.load(sys.argv[3])\n"
        "with torch.no_grad(): torch.save(model(ids).logits, sys.argv[4])"
    )
    arguments = (llama.reference, str(folder), str(tmp_path / "ids.pt"), str(tmp_path / "out.pt"))
    environment = {"PYTHONPATH": str(folder), "PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment, cwd=tmp_path)
    exported = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(exported, live, rtol=0, atol=1e-4)
    assert (llama.model(ids).logits - live).abs().max() > 1e-2


def test_a_bundle_refuses_an_sae_whose_winners_it_cannot_choose(llama, tmp_path):
    """What derives from TopK may choose otherwise; written as TopK's, it would fail where it is loaded."""
    _, edit = sae_with_edit("ablate")
    config = SaeConfig(architecture="own", d_in=llama.d_model, n_latents=16, k=4, site="resid_post.1")
    own = type("Own", (architecture("topk"),), {})(config)
    with pytest.raises(MicroscopeError, match="'own'") as caught:
        write_bundle(tmp_path, llama, EditPlan(edits=(edit,)), {"s": own}, {})
    assert caught.value.code == "cannot_export"


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("return -0.5 * f", "return _half(f)", "uses '_half' from outside"),
        ("return -0.5 * f", "return (lambda g: _half(g))(f)", "uses '_half' from outside"),
        ("return -0.5 * f", "return sum(_half(g) for g in f)", "uses '_half' from outside"),
        ("amount):", "amount, share=0.5):", "has defaults"),
        ("    @staticmethod\n", "", "no static method"),
        ("def change(", "def halved(", "no static method"),
    ],
)
def test_arithmetic_that_a_loader_could_not_run_is_refused(install, written, instead, said):
    source = HALVE.replace(written, instead)
    if "halved" in instead:
        source = source.replace("\nKIND", "    change = halved\n\nKIND")
    package = f"leaning_{zlib.crc32(source.encode())}"  # modules of the same name would be loaded once
    install(package, source, "halve")
    assert said in edit_kinds().refused["halve"].message


def test_arithmetic_that_leans_on_a_function_around_it_is_refused():
    def made(share):
        class Shared(ActivationKind, frozen=True):
            @staticmethod
            def change(f, amount):
                return share * f

        return Shared(name="shared", title="S", description="d", formula="f", sentence="s")

    with pytest.raises(TypeError, match="uses 'share' from outside"):
        made(0.5).check()


def test_a_kind_without_a_base_for_how_it_acts_is_refused():
    """It would be accepted in plans, and change nothing."""
    parts = dict.fromkeys(("identity", "form_in", "judge"), lambda *_: {})
    facts = {"name": "bare", "title": "B", "description": "d", "formula": "f", "sentence": "s"}
    bare = type("Bare", (EditKind,), parts)(**facts, refers_to="feature", acts="site")
    with pytest.raises(TypeError, match="'bare' has no base"):
        bare.check()
    with pytest.raises(TypeError, match="acts='modules'"):
        msgspec.structs.replace(edit_kinds()["ablate"], acts="modules").check()


def test_a_broken_kind_is_refused_by_its_package_and_takes_no_other_down(install):
    install("sound", HALVE, "halve")
    install("incomplete", HALVE.replace("def change", "def changes").replace('"halve"', '"third"'), "third")
    install("clashing", HALVE.replace('name="halve"', 'name="scale"'), "scale")
    _, edit = sae_with_edit("third")
    assert edit_kinds()["scale"].package == ""
    assert edit_kinds()["halve"].package == "sound 1.0"
    for name, package, said in (
        ("third", "incomplete", "leaves out change"),
        ("scale", "clashing", "belongs"),
    ):
        refusal = edit_kinds().refused[name]
        assert package in refusal.message
        assert said in refusal.message
    with pytest.raises(MicroscopeError, match=r"incomplete 1\.0") as caught:
        validate_plan(EditPlan(edits=(edit,)), n_layers=4)
    assert caught.value.code == "bad_extension"


def test_a_plan_of_a_kind_that_is_not_installed_is_read_and_refused_where_it_is_used():
    _, edit = sae_with_edit("of_another_machine")
    plan = msgspec.json.decode(msgspec.json.encode(EditPlan(edits=(edit,))), type=EditPlan)
    assert plan.saes() == {"s"}
    for use in (lambda: validate_plan(plan, n_layers=4), lambda: plan_fingerprint(plan), plan.active):
        with pytest.raises(MicroscopeError, match="of_another_machine") as caught:
            use()
        assert caught.value.code == "unknown_edit_kind"


def test_the_command_line_offers_a_kind_of_another_package(install, tmp_path):
    folder = install("halving", HALVE, "halve")
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from microscope.cli import main; main()"
    said = subprocess.run(
        [sys.executable, "-c", code, "patch", "create", "--help"], capture_output=True, text=True, check=True
    )
    assert "|halve]" in "".join(said.stdout.split())
