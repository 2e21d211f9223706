"""What each kind of job may take, and what its process is told."""

from __future__ import annotations

import pytest

from apps.jobs.kinds import all_kinds
from worker.environment import child_environment, names_the_hub
from worker.limits import limits_of, machine_memory

# Kind → (takes files of others in, memory is the system's to refuse, may be told the Hub's token).
KINDS = {
    "inspect_model": (True, False, True),
    "trace": (False, False, True),
    "train": (False, False, False),
    "evaluate": (False, False, True),
    "analyse": (False, False, True),
    "import_sae": (True, False, True),
    "export_sae": (False, False, False),
    "import_corpus": (True, True, False),
    "import_recording": (True, True, True),
    "export_recording": (False, True, False),
    "import_adapter": (True, False, True),
    "export_patch": (False, False, True),
    "certify_export": (False, False, True),
    "import_project": (True, True, False),
    "export_project": (False, True, False),
    "provenance": (False, False, True),
}


def test_every_kind_is_held_to_something(settings) -> None:
    found = {}
    for kind in all_kinds():
        if not kind.name.startswith("probe"):
            limits = limits_of(kind, {"model_fingerprint": "known"})
            takes_in = limits.seconds_setting == "WORKBENCH_IMPORT_SECONDS"
            found[kind.name] = (takes_in, limits.confined, kind.hub)
            assert 0 < limits.memory <= machine_memory()
            assert limits.seconds > 0
            assert limits.file > 0
    assert found == KINDS
    recording = next(kind for kind in all_kinds() if kind.name == "import_recording")
    assert not limits_of(recording, {"model_fingerprint": ""}).confined, "it loads the model"


def test_a_limit_of_nothing_is_the_machine(settings) -> None:
    settings.WORKBENCH_JOB_MEMORY_MB = 0
    train = next(kind for kind in all_kinds() if kind.name == "train")
    whole = limits_of(train, {}).memory
    assert 0.5 * machine_memory() < whole < machine_memory()
    settings.WORKBENCH_JOB_MEMORY_MB = 10**9
    assert limits_of(train, {}).memory == whole, "no more than there is"
    settings.WORKBENCH_JOB_MEMORY_MB = 100
    assert limits_of(train, {}).memory == 100 * 2**20


@pytest.mark.parametrize(
    ("config", "fetches"),
    [
        ({"model": "owner/name"}, True),
        ({"model": "here"}, False),
        ({"model": "here", "dataset": "owner/texts"}, True),
        ({"model": None}, True),  # the recording names it
        ({}, True),
    ],
)
def test_who_may_have_to_fetch_something(tmp_path, config, fetches) -> None:
    if config.get("model") == "here":
        config = {**config, "model": str(tmp_path)}
    assert names_the_hub(config) is fetches


def test_a_token_from_a_file_reaches_those_who_fetch() -> None:
    assert child_environment(hub=True, hub_token="t", environ={})["HF_TOKEN"] == "t"
    assert child_environment(hub=True, hub_token="t", environ={"HF_TOKEN": "mine"})["HF_TOKEN"] == "mine"
    assert "HF_TOKEN" not in child_environment(hub_token="t", environ={"HF_TOKEN": "mine"})
    assert child_environment(environ={"X": "1", "PATH": "p", "Y": "2"}, more=("X",)).keys() == {
        *("X", "PATH", "PYTHONUNBUFFERED"),
    }
