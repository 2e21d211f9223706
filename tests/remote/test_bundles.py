"""A whole project travels: out by one person, in by another, with everything intact."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from microscope.errors import MicroscopeError
from microscope.remote import Workbench
from tests.running import Lab, Person

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]


def portal_of(lab: Lab, person: Person) -> Workbench:
    made = person.post("/tokens", {"name": "bundles", "scopes": ["admin", "write", "jobs", "artifacts"]})
    return Workbench(lab.site.url, made["secret"])


def rows(person: Person, kind: str, project: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = person.get(f"/{kind}", project=project)["results"]
    return found


@pytest.fixture(scope="module")
def bundle(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alice's project with a label, a star and a patch, as one file."""
    feature = lab.alice.get("/features", sae=lab.sae["id"], ordering="-max_activation")["results"][0]
    lab.alice.patch(f"/features/{feature['id']}", {"label": "numbers", "starred": True})
    reference = {"sae": lab.sae["fingerprint"], "index": feature["index"]}
    plan = {"edits": [{"kind": "ablate", "site": "resid_post.2", "feature": reference}]}
    lab.alice.post(
        "/patches", {"model": lab.model["id"], "name": "Without numbers", "plan": plan, "description": "why"}
    )
    with portal_of(lab, lab.alice) as portal:
        ended = portal.follow(portal.export_project(lab.project["id"]).id)
        assert ended.artifact is not None
        [file] = portal.download(ended.artifact, tmp_path_factory.mktemp("bundle"))
    return file


def test_everything_comes_back(lab: Lab, bundle: Path, tmp_path: Path) -> None:
    ben = lab.site.person("ben")
    with portal_of(lab, ben) as portal:
        ended = portal.follow(portal.import_project(bundle, name="Ben's copy").id)
        project = ended.project
        assert portal.result(ended.id)["warnings"] == []

        [sae] = [row for row in rows(ben, "saes", project) if row["name"] == lab.sae["name"]]
        was = lab.alice.get(f"/saes/{lab.sae['id']}")
        assert sae["id"] != was["id"]
        for column in ("name", "fingerprint", "width", "k", "summary", "params", "created_at"):
            assert sae[column] == was[column], column
        assert sae["evaluation"]["metrics"] == was["evaluation"]["metrics"]
        assert sae["analysis"]["n_features"] == was["analysis"]["n_features"]
        recordings = rows(ben, "recordings", project)
        [recording] = [row for row in recordings if row["name"] == lab.recording["name"]]
        assert (recording["fingerprint"], recording["id"]) == (lab.recording["fingerprint"], sae["recording"])

        stars = ben.get("/features", sae=sae["id"], starred="true")["results"]
        [starred] = [row for row in stars if row["label"] == "numbers"]
        details = ben.get(f"/features/{starred['id']}")
        listed = lab.alice.get("/features", sae=lab.sae["id"], starred="true")["results"]
        [theirs] = [row for row in listed if row["label"] == "numbers"]
        assert details["details"] == lab.alice.get(f"/features/{theirs['id']}")["details"]

        [patch] = [row for row in rows(ben, "patches", project) if row["name"] == "Without numbers"]
        assert patch["description"] == "why"
        files = {f.path: f.sha256 for f in portal.artifact(sae["artifact"]).files}
        with portal_of(lab, lab.alice) as other:
            went = {f.path: f.sha256 for f in other.artifact(was["artifact"]).files}
        # what leaves names the model, not where it lay
        assert files.pop("sae.json") != went.pop("sae.json")
        assert files == went

        # It is a project like any other: the next job reads what came in.
        measured = portal.follow(portal.evaluate(sae["id"]).id)
        again = portal.result(measured.id)["metrics"]
        assert again["fvu"] == pytest.approx(was["evaluation"]["metrics"]["fvu"], rel=1e-6)
    assert lab.alice.get(f"/saes/{was['id']}") == was


def test_a_damaged_bundle_is_refused_and_leaves_an_empty_project(
    lab: Lab, bundle: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(damaged, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith("sae.safetensors"):
                data = data[:-1] + bytes([data[-1] ^ 1])
            target.writestr(info, data)
    with portal_of(lab, lab.alice) as portal:
        job = portal.import_project(damaged, name="Damaged")
        with pytest.raises(MicroscopeError, match=r"sae\.safetensors is damaged") as refused:
            portal.follow(job.id)
        assert refused.value.code == "bad_bundle"
        for kind in ("models", "corpora", "recordings", "saes", "patches"):
            assert rows(lab.alice, kind, job.project) == []


def test_a_bundle_opens_without_a_portal(bundle: Path, tmp_path: Path) -> None:
    from microscope.bundles import unpack
    from microscope.params.bundles import UnpackParams
    from microscope.sae import load_sae

    unpack(UnpackParams(path=str(bundle), out=str(tmp_path / "out")))
    document = json.loads((tmp_path / "out" / "bundle.json").read_text())
    row = document["rows"]["saes"][0]
    sae = load_sae(tmp_path / "out" / "artifacts" / row["artifact"])
    assert sae.config.n_latents == row["width"]
