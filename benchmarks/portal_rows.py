"""Fills the project of a running portal with what a laboratory has after some months, and signs people in.

``python -m benchmarks.portal_rows PROJECT MODEL --people 50 --width 65536`` in the environment of the portal; prints
what somebody who browses must know as JSON. Rows and files are those of the portal's own models: nothing is left
out that a page reads. The analysis of the wide SAE is a file of full size, as the engine writes it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from datetime import timedelta
from random import Random
from typing import Any

import django
import msgspec

django.setup()

from django.conf import settings  # noqa: E402
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.utils import timezone  # noqa: E402

from apps.accounts.models import User  # noqa: E402
from apps.artifacts import storage  # noqa: E402
from apps.artifacts.models import Artifact  # noqa: E402
from apps.core.ids import uuid7  # noqa: E402
from apps.features.details import rows_of  # noqa: E402
from apps.features.kinds import BATCH, learn_what_is_common  # noqa: E402
from apps.features.models import Analysis, Feature  # noqa: E402
from apps.jobs.models import Job, JobEvent  # noqa: E402
from apps.notifications.models import Notification  # noqa: E402
from apps.projects.models import Membership, Project, Role  # noqa: E402
from apps.registry.models import LanguageModel  # noqa: E402
from apps.saes.models import Sae  # noqa: E402
from microscope.params import AnalyseParams  # noqa: E402
from microscope.params.features import DETAILS  # noqa: E402
from tests import factories  # noqa: E402

_CORPORA, _RECORDINGS, _SAES, _PATCHES, _EXPORTS = 6, 20, 24, 30, 12
_OTHER_PROJECTS, _JOBS_OF_EACH, _CURVES, _NOTIFICATIONS = 4, 2, 300, 30
_WORDS, _POOL = 3000, 2048
_DEAD, _LABELLED, _STARRED = 0.04, 0.02, 0.01
_FORM = AnalyseParams(
    sae_path="", activations=""
)  # how many examples, neighbours … an analysis keeps by default
# What a job is about is made by it or looked at.
_KINDS = ("train", "evaluate", "analyse")


def main() -> None:
    """Make everything and say what there is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.portal_rows", description=__doc__)
    parser.add_argument("project")
    parser.add_argument("model")
    parser.add_argument("--people", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    options = parser.parse_args()
    random = Random(3)
    project = Project.objects.get(pk=options.project)
    model = LanguageModel.objects.get(pk=options.model)
    words = _words()
    people = [_person(number, project) for number in range(options.people)]
    saes = _laboratory(project, model, people, random)
    jobs = [job for sae in saes for job in _jobs(sae, random.choice(people), random)]
    _wide(saes[-1], options.width, words, random)
    found = {
        "sessions": [_session(user) for user in people],
        "project": str(project.pk),
        "sae": str(saes[-1].pk),
        "saes": [str(sae.pk) for sae in saes],
        "jobs": [str(job.pk) for job in jobs if job.kind == "train"],
        "patches": [str(pk) for pk in project.patches.values_list("pk", flat=True)],
        "words": words,
    }
    json.dump(found, sys.stdout)


def _words() -> list[str]:
    """Words of the speeches, as a tokenizer with a space before each would have them."""
    speech = min((settings.WORKBENCH_DATA_DIR / "corpora").rglob("*.txt")).read_text()
    return sorted({f" {word}" for word in speech.lower().split() if word.isalpha()})[:_WORDS]


def _person(number: int, project: Project) -> User:
    """A member with things to read in the bell."""
    user = User.objects.create(username=f"reader{number}", email=f"reader{number}@example.org", password="!")
    Membership.objects.create(project=project, user=user, role=Role.EDITOR)
    Notification.objects.bulk_create(
        Notification(
            user=user,
            project=project,
            kind="job.succeeded",
            level=Notification.Level.SUCCESS,
            title=f"Train SAE {n} has finished",
            subject_type="job",
            subject_id=uuid7(),
            read_at=None if n >= _NOTIFICATIONS - 3 else timezone.now(),
        )
        for n in range(_NOTIFICATIONS)
    )
    return user


def _session(user: User) -> str:
    """The key of a session as signing in makes it; fifty sign-ins would mostly measure the hashing of passwords."""
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.create()
    return str(session.session_key)


def _laboratory(project: Project, model: LanguageModel, people: list[User], random: Random) -> list[Sae]:
    """Corpora, recordings, evaluated SAEs and patches with their exports; and other projects people are in."""
    for _ in range(_OTHER_PROJECTS):
        other = factories.ProjectFactory(description="Another laboratory.")
        Membership.objects.bulk_create(
            Membership(project=other, user=user, role=Role.VIEWER) for user in people
        )
    corpora = factories.CorpusFactory.create_batch(_CORPORA, project=project, documents=233, bytes=10**7)
    recordings = [
        factories.RecordingFactory(
            project=project,
            model=model,
            corpus=random.choice(corpora),
            layers=[5, 10, 15],
            tokens=1_000_000,
            summary=_recorded(),
        )
        for _ in range(_RECORDINGS)
    ]
    saes = []
    for number in range(_SAES):
        sae = factories.SaeFactory(
            project=project,
            model=model,
            recording=random.choice(recordings),
            layer=15,
            width=4096,
            k=32,
            params={"tokens": 1_000_000, "width": [4096], "k": [32], "lr": 0.001, "batch_size": 1024},
        )
        factories.EvaluationFactory(sae=sae, metrics=_metrics(random), goals=_GOALS, details=_details(number))
        saes.append(sae)
    for number in range(_PATCHES):
        edits = [
            factories.plan_for(random.choice(saes), index=random.randrange(4096))["edits"][0]
            for _ in range(3)
        ]
        patch = factories.PatchFactory(
            project=project, model=model, plan=factories.stored({"edits": edits}), enabled=False
        )
        if number < _EXPORTS:
            factories.CertificateFactory(export__patch=patch, export__project=project)
    return saes


def _recorded() -> dict[str, Any]:
    """The summary a recording keeps of itself."""
    site = {"width": 576, "rms_norm": 180.2, "median_norm": 161.3, "outlier_norm": 1290.4, "outliers": 4012}
    return {
        "documents": 233,
        "held_out_tokens": 50_000,
        "tokens_per_second": 4100.0,
        "seconds": 244.0,
        "model": {"name": "model", "dtype": "bfloat16"},
        "corpus": {"description": "speeches"},
        "sites": [{"site": f"resid_post.{layer}", **site} for layer in (5, 10, 15)],
    }


_GOALS = [
    {
        "name": name,
        "value": 0.12,
        "limit": 0.15,
        "better": "lower",
        "passed": True,
        "formula": "Σ‖x−x̂‖² / Σ‖x−μ‖²",
    }
    for name in ("FVU", "CE recovered", "Dead in training", "L0")
]


def _metrics(random: Random) -> dict[str, float | None]:
    names = (
        "fvu per_token_fvu nmse0 cosine norm_ratio relative_bias l0 dead_held_out dead_in_training ce_model "
    )
    names += "ce_sae ce_zero ce_recovered kl_sae kl_recovered fvu_all_tokens tokens all_tokens documents"
    return {name: random.random() for name in names.split()}


def _details(number: int) -> dict[str, Any]:
    edges = [-6 + 6 * n / 40 for n in range(41)]
    return {
        "density_edges": edges,
        "density_counts": [number + n for n in range(40)],
        "honesty": "Sinks are left out.",
    }


def _jobs(sae: Sae, user: User, random: Random) -> Iterator[Job]:
    """What was done about an SAE, with the curves of its training; now and then something failed first."""
    now = timezone.now()
    for kind in _KINDS:
        for attempt in range(_JOBS_OF_EACH):
            failed = attempt == 0 and random.random() < 0.2
            job = Job.objects.create(
                project=sae.project,
                created_by=user,
                kind=kind,
                title=f"{kind.capitalize()} {sae.name}",
                subject_type="sae",
                subject_id=sae.pk,
                params={**sae.params, "layer": 15, "seed": [0]},
                state="failed" if failed else "succeeded",
                attempt=1,
                started_at=now - timedelta(minutes=random.randrange(60, 10_000)),
                finished_at=now - timedelta(minutes=random.randrange(1, 60)),
                phase="training",
                done=1e6,
                total=1e6,
                unit="tokens",
                rate=30_000.0,
                metrics={"fvu": 0.2, "l0": 32.0, "dead": 0.01},
                error_code="out_of_memory" if failed else "",
                error_message="The process needed more memory than there is." if failed else "",
                event_seq=_CURVES if kind == "train" else 0,
            )
            if kind == "train":
                JobEvent.objects.bulk_create(_event(job, n, random) for n in range(1, _CURVES + 1))
                sae.job = job
            yield job
    sae.save()


def _event(job: Job, number: int, random: Random) -> JobEvent:
    """A point of the curves, and a line of the log at every tenth."""
    if number % 10 == 0:
        return JobEvent(job=job, seq=number, attempt=1, kind="log", message=f"Step {number} of {_CURVES}.")
    metrics = {"fvu": random.random(), "l0": 32.0, "dead": 0.01, "lr": 0.001}
    data = {"phase": "training", "done": number * 3000, "rate": 30_000.0, "metrics": metrics}
    return JobEvent(job=job, seq=number, attempt=1, kind="metrics", data=data)


# --- the wide SAE ---------------------------------------------------------------------------------------


def _wide(sae: Sae, width: int, words: list[str], random: Random) -> None:
    """Give the SAE an analysis of that many features, by the way the portal itself takes one over."""
    artifact = Artifact(project=sae.project, kind=Artifact.Kind.ANALYSIS, path=f"00/{uuid7()}", bytes=0)
    artifact.local_path.mkdir(parents=True)
    path = artifact.local_path / DETAILS
    with path.open("wb") as stream:
        stream.writelines(_lines(width, words, random))
    artifact.files = storage.list_files(artifact.local_path)
    artifact.bytes = path.stat().st_size
    artifact.save()
    dead = 0
    batch: list[Feature] = []
    for feature in rows_of(path, sae.pk):
        feature.starred = random.random() < _STARRED
        feature.label = f"about{random.choice(words)}" if random.random() < _LABELLED else ""
        dead += feature.dead
        batch.append(feature)
        if len(batch) == BATCH:
            Feature.objects.bulk_create(batch)
            batch.clear()
    Feature.objects.bulk_create(batch)
    manifest = {"tokens": 1_000_000, "histogram_bins": 40}
    Analysis.objects.create(
        sae=sae, artifact=artifact, n_features=width, dead=dead, tokens=1_000_000, manifest=manifest
    )
    learn_what_is_common()
    sae.width = width
    sae.save()


def _lines(width: int, words: list[str], random: Random) -> Iterator[bytes]:
    """``details.jsonl``. Examples come from a pool: what is in them changes nothing, how long they are does."""
    groups = [_pool(group, words, random) for group in range(_FORM.quantiles + 1)]
    for index in range(width):
        if random.random() < _DEAD:
            yield _line(_numbers(index, 0.0, 0.0, words, random), b"", b"")
            continue
        density = 10 ** random.uniform(-6, -1)
        best = b",".join(random.choices(groups[0], k=_FORM.examples))
        weaker = b",".join(
            example for pool in groups[1:] for example in random.choices(pool, k=_FORM.quantile_examples)
        )
        numbers = _numbers(index, density, round(random.lognormvariate(1, 1), 4), words, random)
        numbers |= _related(width, random)
        yield _line(numbers, best, weaker)


def _line(numbers: dict[str, Any], best: bytes, weaker: bytes) -> bytes:
    head = msgspec.json.encode(numbers)[:-1]
    return b'%b,"examples":[%b],"quantile_examples":[%b]}\n' % (head, best, weaker)


def _numbers(index: int, density: float, most: float, words: list[str], random: Random) -> dict[str, Any]:
    firings = math.ceil(density * 1_000_000)
    listed = _FORM.top_tokens
    return {
        "index": index,
        "density": density,
        "firings": firings,
        "max_activation": most,
        "mean_activation": round(most / 3, 4),
        "p999": round(0.9 * most, 4),
        "dead": firings == 0,
        "histogram": [random.randrange(1000) if firings else 0 for _ in range(40)],
        "top_tokens": [
            {"token": random.randrange(49_000), "text": text, "mean": 1.25, "count": random.randrange(999)}
            for text in random.choices(words, k=listed if firings else 0)
        ],
        "promoted": [_weight(text, 0.12345, random) for text in random.choices(words, k=listed)],
        "suppressed": [_weight(text, -0.12345, random) for text in random.choices(words, k=listed)],
        "decoder_norm": 1.0,
        "encoder_decoder_cosine": 0.7654,
    }


def _weight(text: str, weight: float, random: Random) -> dict[str, Any]:
    return {"token": random.randrange(49_000), "text": text, "weight": weight}


def _related(width: int, random: Random) -> dict[str, Any]:
    others = [random.randrange(width) for _ in range(3 * _FORM.neighbours)]
    alike = [{"index": index, "cosine": 0.4321} for index in others]
    n = _FORM.neighbours
    return {
        "decoder_neighbours": alike[:n],
        "encoder_neighbours": alike[n : 2 * n],
        "partners": [{"index": index, "share": 0.1234, "lift": 12.34} for index in others[2 * n :]],
    }


def _pool(group: int, words: list[str], random: Random) -> list[bytes]:
    length = 2 * _FORM.window + 1
    pool = []
    for number in range(_POOL):
        values = [round(random.uniform(0, 5), 4) if random.random() < 0.1 else 0.0 for _ in range(length)]
        values[_FORM.window] = 5.0
        example = {
            "doc": number % 233,
            "pos": random.randrange(100_000),
            "peak": _FORM.window,
            "max": 5.0,
            "texts": random.choices(words, k=length),
            "values": values,
            "group": group,
        }
        pool.append(msgspec.json.encode(example))
    return pool


if __name__ == "__main__":
    main()
