"""Patches out and adapters in: verdicts, gates, downloads, overrides, and real jobs of all three kinds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from django.urls import reverse

from apps.artifacts.models import Artifact
from apps.audit.models import AuditEvent
from apps.jobs import leases
from apps.jobs.kinds import OUT, get_kind
from apps.jobs.models import Job
from apps.patches.models import Adapter, Certificate, Export, Patch
from tests.factories import ArtifactFactory, CertificateFactory, ExportFactory, UploadFactory, gates, plan_for


def error(response) -> dict:
    return response.json()["errors"][0]


def url(export: Export, what: str, **more) -> str:
    return reverse(f"export-{what}", kwargs={"pk": export.pk, **more})


# --- verdicts -------------------------------------------------------------------------------------------


def grades(client, patch) -> dict[str, str]:
    answer = client.get(reverse("patch-targets", kwargs={"pk": patch.pk}))
    assert answer.status_code == 200
    assert all(row["reason"] for row in answer.json())
    return {row["target"]: row["grade"] for row in answer.json()}


def test_targets_say_what_they_can_hold_before_anything_is_computed(world, editor) -> None:
    assert grades(editor, world.patch) == {
        "peft": "approximate",
        "merged": "approximate",
        "control_vector": "not_possible",
        "gguf_lora": "approximate",
        "bundle": "exact",
    }
    constant = plan_for(world.sae, kind="add", positions={"include_sinks": True})
    editor.patch(f"/api/v1/patches/{world.patch.pk}", {"plan": constant})
    found = grades(editor, world.patch)
    assert (found["merged"], found["control_vector"], found["peft"]) == ("exact", "exact", "approximate")
    editor.patch(f"/api/v1/patches/{world.patch.pk}", {"plan": plan_for(world.sae, kind="add")})
    assert grades(editor, world.patch)["merged"] == "approximate", "special tokens are spared live"


@pytest.mark.parametrize(
    ("facts", "target", "grade"),
    [
        ({"model_type": "llama", "tied": False}, "peft", "exact"),
        ({"model_type": "llama", "tied": True}, "peft", "not_possible"),
        ({"model_type": "llama", "tied": True}, "merged", "exact"),
        ({"model_type": "llama", "writer_bias": True}, "peft", "not_possible"),
        ({"model_type": "gpt2", "tied": True, "writer_bias": True}, "peft", "not_possible"),
        ({"model_type": "gpt2", "tied": True, "writer_bias": True}, "merged", "exact"),
        ({"model_type": "gemma2"}, "merged", "not_possible"),
        ({"model_type": "gemma2"}, "bundle", "exact"),
        ({"model_type": "bert"}, "bundle", "not_possible"),
    ],
)
def test_ablation_everywhere_by_family(world, editor, facts, target, grade) -> None:
    world.model.facts = {"n_layers": 4, "d_model": 32, **facts}
    world.model.save()
    editor.patch(
        f"/api/v1/patches/{world.patch.pk}",
        {"plan": plan_for(world.sae, kind="ablate_everywhere", strength=0.0)},
    )
    assert grades(editor, world.patch)[target] == grade


def test_a_whole_adapter_is_judged_by_its_modules(world, editor) -> None:
    """Queries are stored permuted by llama.cpp; an edit that names no module means all of them, queries too."""
    world.model.facts = {"n_layers": 4, "d_model": 32, "model_type": "llama"}
    world.model.save()
    whole = {"edits": [{"kind": "lora", "adapter": world.adapter.fingerprint, "strength": 0.5}]}
    assert editor.patch(f"/api/v1/patches/{world.patch.pk}", {"plan": whole}).status_code == 200
    for part, grade in (("mlp.down_proj", "exact"), ("self_attn.q_proj", "not_possible")):
        world.adapter.summary = {"modules": [f"model.layers.1.{part}"]}
        world.adapter.save()
        assert grades(editor, world.patch)["gguf_lora"] == grade
        assert grades(editor, world.patch)["peft"] == "exact"
    assert error(start(editor, world.patch, "gguf_lora"))["code"] == "not_possible"


# --- exports and their gates ----------------------------------------------------------------------------


def start(client, patch, target: str = "bundle", **body):
    return client.post(
        reverse("patch-export", kwargs={"pk": patch.pk}), {"target": target, **body}, format="json"
    )


def test_exports_and_certificates_are_repeated_with_changes(world, editor, run_outcome) -> None:
    first = start(editor, world.patch, params={"seed": 3}).json()
    again = editor.post(f"/api/v1/jobs/{first['job']['id']}/clone", {"params": {"seed": 4}}, format="json")
    assert again.status_code == 202
    copy = Export.objects.get(pk=again.json()["subject_id"])
    assert (copy.target, copy.recording_id, copy.params["seed"]) == ("bundle", world.recording.pk, 4)
    manifest = {"grade": "exact", "reason": "…", "fit": None}
    run_outcome(str(copy.job_id), result=manifest, files={"patch.json": b"{}", "export.json": b"{}"})
    certificate = Certificate.objects.get(export=copy)
    again = editor.post(
        f"/api/v1/jobs/{certificate.job_id}/clone", {"params": {"contexts": 4}}, format="json"
    )
    assert again.status_code == 202
    assert Certificate.objects.get(pk=again.json()["subject_id"]).params["contexts"] == 4
    assert Certificate.objects.filter(export=copy).count() == 2


def test_an_export_is_written_certified_and_given_out(world, editor, run_outcome) -> None:
    answer = start(editor, world.patch)
    assert answer.status_code == 202
    made = answer.json()["export"]
    assert (made["state"], made["gate"], made["grade"]) == ("pending", "uncertified", "exact")
    assert made["recording"] == str(world.recording.pk), "its SAE's text"
    manifest = {"grade": "exact", "reason": "…", "fit": None}
    run_outcome(
        answer.json()["job"]["id"], result=manifest, files={"patch.json": b"{}", "export.json": b"{}"}
    )
    export = Export.objects.get(pk=made["id"])
    file = url(export, "file", name="patch.json")
    assert error(editor.get(file))["code"] == "not_certified"
    certificate = Certificate.objects.get(export=export)
    report = {"passed": True, "gates": gates(passed=True)}
    run_outcome(
        certificate.job_id, result=report, files={"certificate.json": b"{}", "certificate.html": b"<p>"}
    )
    shown = editor.get(url(export, "detail")).json()
    assert (shown["gate"], shown["certificate"]["passed"]) == ("passed", True)
    assert [g["name"] for g in shown["certificate"]["gates"]] == ["Same logits", "Collateral"]
    assert b"".join(editor.get(file)) == b"{}"
    event = AuditEvent.objects.get(action="export.downloaded")
    assert (event.data["file"], event.data["gate"]) == ("patch.json", "passed")


def test_a_failed_gate_blocks_until_an_owner_overrides(world, client_of) -> None:
    editor, owner, viewer = client_of("editor"), client_of("owner"), client_of("viewer")
    file = url(world.blocked, "file", name="model.safetensors")
    for client in (editor, owner):
        refusal = client.get(file)
        assert refusal.status_code == 409
        assert error(refusal)["code"] == "gates_not_passed"
        assert "Collateral: 0.3 (limit 0.02)" in error(refusal)["detail"]
    override = url(world.blocked, "override")
    assert editor.post(override, {"reason": "I would like to have it"}).status_code == 403
    assert owner.post(override, {"reason": "ok"}).status_code == 400
    done = owner.post(override, {"reason": "for an experiment behind a wall"})
    assert (done.status_code, done.json()["gate"]) == (200, "overridden")
    assert done.json()["overridden_by"] == world.people["owner"].username
    assert b"".join(viewer.get(file)) == b"weights"
    event = AuditEvent.objects.get(action="export.overridden")
    assert event.data["reason"] == "for an experiment behind a wall"
    assert event.data["failed"] == ["Collateral: 0.3 (limit 0.02)"]
    assert error(owner.post(override, {"reason": "once more, with feeling"}))["code"] == "nothing_to_override"


def test_the_share_of_the_effect_is_shown_with_its_interval(world, client_of, run_outcome) -> None:
    """Beside gates that are limits from below; certificates of older versions have neither."""
    owner = client_of("owner")
    older = owner.get(url(world.blocked, "detail")).json()["certificate"]
    assert older["share"] is None
    assert {(gate["at_least"], gate["interval"]) for gate in older["gates"]} == {(False, None)}
    answer = owner.post(url(world.blocked, "certify"), {"params": {"triggers": ["hello"]}}, format="json")
    share = {"value": 0.31, "interval": [0.2, 0.4]}
    gate = {
        "name": "Share of effect kept",
        "limit": 0.9,
        "passed": False,
        "formula": "…",
        "at_least": True,
        **share,
    }
    report = {"passed": False, "gates": [gate], "effect": {"share": share}}
    run_outcome(answer.json()["job"]["id"], result=report, files={"certificate.json": b"{}"})
    shown = owner.get(url(world.blocked, "detail")).json()["certificate"]
    assert shown["share"] == share
    assert shown["gates"][0]["at_least"] is True
    assert shown["gates"][0]["interval"] == [0.2, 0.4]
    refusal = owner.get(url(world.blocked, "file", name="model.safetensors"))
    assert "Share of effect kept: 0.31 (at least 0.9)" in error(refusal)["detail"]


def test_a_new_certificate_undoes_an_override(world, client_of, run_outcome) -> None:
    owner = client_of("owner")
    owner.post(url(world.blocked, "override"), {"reason": "for an experiment behind a wall"})
    answer = owner.post(
        url(world.blocked, "certify"), {"params": {"triggers": ["hello"], "contexts": 8}}, format="json"
    )
    assert answer.status_code == 202
    report = {"passed": False, "gates": gates(passed=False)}
    run_outcome(answer.json()["job"]["id"], result=report, files={"certificate.json": b"{}"})
    world.blocked.refresh_from_db()
    assert (world.blocked.gate, world.blocked.override_reason) == ("blocked", "")


def test_the_gate_has_no_way_around_it(world, client_of) -> None:
    """The files of an export are artifacts too; their plain routes refuse, even to staff."""
    for export in (world.blocked, world.export):
        for client in (client_of("owner"), client_of("staff")):
            for name, more in (("artifact-file", {"name": "model.safetensors"}), ("artifact-archive", {})):
                answer = client.get(reverse(name, kwargs={"pk": export.artifact_id, **more}))
                assert (answer.status_code, error(answer)["code"]) == (409, "guarded_files")
    assert client_of("owner").get(url(world.blocked, "archive")).status_code == 409


def test_certificates_can_always_be_read(world, client_of) -> None:
    viewer = client_of("viewer")
    page = viewer.get(url(world.blocked, "report"))
    assert page["Content-Type"].startswith("text/html")
    assert "sandbox" in page["Content-Security-Policy"]
    assert viewer.get(url(world.blocked, "certificate")).status_code == 200
    bare = ExportFactory(patch=world.patch)
    assert error(viewer.get(url(bare, "certificate")))["code"] == "not_certified"


def test_what_cannot_be_exported_is_refused_with_the_reason(world, editor) -> None:
    refusal = start(editor, world.patch, "control_vector")
    assert (refusal.status_code, error(refusal)["code"]) == (409, "not_possible")
    assert "constant" in error(refusal)["detail"]
    assert start(editor, world.patch, "nowhere").status_code == 400
    assert error(start(editor, world.patch, params={"model": "/etc/passwd"}))["code"] == "bad_parameters"
    world.recording.state = "failed"
    world.recording.save()
    assert error(start(editor, world.patch))["code"] == "no_recording"
    assert not Export.objects.filter(state="pending").exists()


def test_the_recording_of_another_model_or_project_is_refused(world, foreign, editor) -> None:
    other = start(editor, world.patch, recording=str(foreign.recording.pk))
    assert (other.status_code, error(other)["code"]) == (400, "does_not_exist")


def test_an_export_keeps_the_plan_it_was_made_of(world, editor) -> None:
    made = start(editor, world.patch).json()["export"]
    editor.patch(f"/api/v1/patches/{world.patch.pk}", {"plan": plan_for(world.sae, 9)})
    export = Export.objects.get(pk=made["id"])
    assert export.plan == world.patch.plan
    assert (export.patch_version, export.fingerprint) == (1, world.patch.fingerprint)


def test_the_same_key_makes_one_export(world, editor) -> None:
    path = reverse("patch-export", kwargs={"pk": world.patch.pk})
    answers = [editor.post(path, {"target": "bundle"}, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert answers[0].json()["export"]["id"] == answers[1].json()["export"]["id"]


def test_deleting_takes_the_files_along(world, editor, django_capture_on_commit_callbacks) -> None:
    places = [a.local_path for a in Artifact.objects.filter(kind__in=("patch_export", "certificate"))]
    assert len(places) == 4
    with django_capture_on_commit_callbacks(execute=True):
        assert editor.delete(url(world.export, "detail")).status_code == 204
        assert editor.delete(f"/api/v1/patches/{world.patch.pk}").status_code == 204
    assert not Artifact.objects.filter(kind__in=("patch_export", "certificate")).exists()
    assert not any(place.exists() for place in places)


def test_an_export_in_the_making_is_not_deleted(world, editor) -> None:
    made = start(editor, world.patch).json()["export"]
    for path in (url(Export.objects.get(pk=made["id"]), "detail"), f"/api/v1/patches/{world.patch.pk}"):
        answer = editor.delete(path)
        assert (answer.status_code, error(answer)["code"]) == (409, "job_active")


def test_a_failed_job_fails_its_export(world, editor, run_outcome) -> None:
    answer = start(editor, world.patch)
    run_outcome(answer.json()["job"]["id"], error=("never_fires", "No edit acts.", "Give other text."))
    assert Export.objects.get(pk=answer.json()["export"]["id"]).state == "failed"


# --- adapters -------------------------------------------------------------------------------------------


def upload(person, path: str, content: bytes):
    row = UploadFactory(created_by=person, path=path, bytes=len(content))
    row.local_path.parent.mkdir(parents=True, exist_ok=True)
    row.local_path.write_bytes(content)
    return row


def bring(client, world, uploads, name: str = "their adapter"):
    body = {"model": str(world.model.pk), "name": name, "uploads": [str(u.pk) for u in uploads]}
    return client.post(reverse("adapter-list"), body, format="json")


def test_only_the_two_files_of_an_adapter_are_taken(world, editor) -> None:
    person = world.people["editor"]
    config, weights = upload(person, "a/adapter_config.json", b"{}"), upload(person, "a/x.bin", b"1")
    assert error(bring(editor, world, [config, weights]))["code"] == "wrong_files"
    pickle = upload(person, "a/adapter_model.bin", b"\x80\x04")
    assert error(bring(editor, world, [config, pickle]))["code"] == "pickle_refused"
    stranger = upload(world.people["owner"], "adapter_model.safetensors", b"1")
    assert error(bring(editor, world, [config, stranger]))["code"] == "does_not_exist"
    assert not Job.objects.filter(kind="import_adapter").exists()
    assert not Adapter.objects.filter(name="their adapter").exists()


def test_plans_name_only_adapters_of_their_model(world, foreign, editor) -> None:
    def save(fingerprint: str, name: str):
        plan = {"edits": [{"kind": "lora", "adapter": fingerprint, "strength": 0.5}]}
        return editor.post("/api/v1/patches", {"model": str(world.model.pk), "name": name, "plan": plan})

    assert save(world.adapter.fingerprint, "a").status_code == 201
    assert error(save(foreign.adapter.fingerprint, "b"))["code"] == "unknown_adapter"
    assert error(editor.delete(f"/api/v1/adapters/{world.adapter.pk}"))["code"] == "in_use"


# --- the whole way, with real jobs ------------------------------------------------------------------------


@pytest.fixture
def work(db, run_outcome):
    """Do a job in a child process, as the compute worker does."""

    def run(job_id) -> Job:
        from apps.artifacts.services import list_folder
        from tests.factories import WorkerNodeFactory

        job = leases.claim(job_id=job_id, node=WorkerNodeFactory())
        assert job is not None
        leases.start(job_id=job.pk, token=job.lease_token)
        kind, folder = get_kind(job.kind), leases.workdir(job.pk)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.json"
        config.write_text(json.dumps(kind.prepare(job, folder)))
        done = subprocess.run(
            [*kind.command(), "--config", str(config), "--json"], capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            code = done.stderr.rsplit("Error (", 1)[-1].split(")", 1)[0]
            return leases.fail(job=job, token=job.lease_token, code=code, message=done.stderr[-300:], hint="")
        files = list_folder(folder / OUT)
        return leases.succeed(
            job=job, token=job.lease_token, result=json.loads(done.stdout), files=files, digest=None
        )

    return run


@pytest.fixture
def real(world, tmp_path):
    """The world with a real tiny model, recording and SAE behind its rows."""
    import shutil

    from microscope.activations import record
    from microscope.params import TraceParams, TrainParams
    from microscope.training import train
    from tests.tiny_models import make_corpus, make_model

    model, corpus = make_model("llama", tmp_path / "llama"), make_corpus(tmp_path / "texts", documents=24)
    common = {"device": "cpu"}
    record(
        TraceParams(model=str(model), out=str(tmp_path / "rec"), layers=(2,), text=(str(corpus),), tokens=1500,
                    context_length=32, held_out=0.2, dtype="float32", **common)
    )  # fmt: skip
    train(
        TrainParams(activations=str(tmp_path / "rec"), out=str(tmp_path / "sae"), layer=2, width=48, k=4,
                    tokens=4000, batch_size=200, **common)
    )  # fmt: skip
    from microscope.sae import load_sae

    fingerprint = load_sae(tmp_path / "sae").content_fingerprint()
    world.model.reference, world.model.source = str(model), "folder"
    world.model.facts |= {"model_type": "llama", "tied": False, "writer_bias": False}
    world.model.save()
    for row, source in ((world.recording, "rec"), (world.sae, "sae")):
        content = {
            str(p.relative_to(tmp_path / source)): p.read_bytes()
            for p in (tmp_path / source).rglob("*")
            if p.is_file() and "checkpoints" not in p.parts
        }
        row.artifact = ArtifactFactory(project=world.project, kind=row.artifact.kind, content={})
        for name, data in content.items():
            target = row.artifact.local_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    world.sae.fingerprint, world.sae.width = fingerprint, 48
    world.recording.save()
    world.sae.save()
    shutil.rmtree(tmp_path / "texts")
    return world


def test_adapter_in_mixed_with_a_feature_and_out_again(real, editor, work, tmp_path) -> None:
    """PEFT writes an adapter; it becomes a patch, gets a feature edit beside it, and leaves as a bundle, certified."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(real.model.reference, dtype=torch.float32)
    theirs = get_peft_model(
        base, LoraConfig(r=3, lora_alpha=6, target_modules=["o_proj", "q_proj"], use_rslora=True)
    )
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    theirs.save_pretrained(tmp_path / "theirs")
    names = ("adapter_config.json", "adapter_model.safetensors")
    sent = [
        upload(real.people["editor"], f"theirs/{n}", (tmp_path / "theirs" / n).read_bytes()) for n in names
    ]
    answer = bring(editor, real, sent)
    assert answer.status_code == 202, answer.content
    job = work(answer.json()["job"]["id"])
    assert job.state == "succeeded", job.error_message
    adapter = Adapter.objects.get(pk=answer.json()["adapter"]["id"])
    assert (adapter.state, adapter.summary["rank"]) == ("ready", 3)
    patch = Patch.objects.get(pk=adapter.patch_id)
    assert patch.plan["edits"][0]["adapter"] == adapter.fingerprint
    assert not patch.enabled, "an imported patch does nothing until somebody switches it on"

    edits = [{**patch.plan["edits"][0], "strength": 0.5}, *plan_for(real.sae, 3, strength=0.9)["edits"]]
    assert editor.patch(f"/api/v1/patches/{patch.pk}", {"plan": {"edits": edits}}).status_code == 200
    started = start(editor, patch, "bundle", params={"device": "cpu"})
    assert started.status_code == 202, started.content
    assert work(started.json()["job"]["id"]).state == "succeeded"
    certificate = Certificate.objects.get(export=started.json()["export"]["id"])
    done = work(certificate.job_id)
    assert done.state == "succeeded", done.error_message
    export = Export.objects.get(pk=started.json()["export"]["id"])
    certificate.refresh_from_db()
    measured = {g["name"]: g for g in certificate.report["gates"]}
    assert measured["Same logits"]["passed"]
    assert measured["Off is the base"]["passed"]
    assert certificate.report["export"]["base"]["reference"] == real.model.name, (
        "no path of the server leaves"
    )
    assert str(tmp_path) not in (certificate.artifact.local_path / "certificate.html").read_text()
    assert export.gate == ("passed" if certificate.passed else "blocked")
    assert {Path(f["path"]).name for f in export.artifact.files} >= {"load_patch.py", "rows.safetensors"}


@pytest.mark.parametrize(
    ("more", "code"), [({}, "bad_adapter"), ({"auto_map": {"x": "y"}}, "unsupported_adapter")]
)
def test_a_hostile_adapter_fails_its_job_with_a_reason(real, editor, work, more, code) -> None:
    person = real.people["editor"]
    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, **more}).encode()
    sent = [
        upload(person, "adapter_config.json", config),
        upload(person, "adapter_model.safetensors", (10**15).to_bytes(8, "little") + b"{}"),
    ]
    job = work(bring(editor, real, sent).json()["job"]["id"])
    assert (job.state, job.error_code) == ("failed", code)
    assert Adapter.objects.get(pk=job.subject_id).state == "failed"


def test_overrides_need_a_reason_in_the_database_too(world) -> None:
    from django.db import IntegrityError, transaction

    with pytest.raises(IntegrityError), transaction.atomic():
        Export.objects.filter(pk=world.blocked.pk).update(gate="overridden", override_reason="")
    CertificateFactory(export=world.blocked, passed=None, state="pending", artifact=None, report={})
