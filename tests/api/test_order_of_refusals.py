"""First whether a thing is visible (404), then whether the action is allowed (403), then how the thing is (409).

Whoever may not do something learns nothing about the state of what they may not do it to: the answers to them are
the same whatever has become of the jobs, models, results and uploads of the world.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.urls import reverse
from django.utils import timezone

from apps.accounts.scopes import Scope
from apps.artifacts.models import Upload
from apps.core.ids import uuid7
from apps.jobs.models import Job
from apps.patches.models import Adapter, Certificate, Export
from apps.projects.models import Invitation, Membership
from apps.projects.policies import Action
from apps.registry.models import Corpus, LanguageModel, Recording
from apps.saes.models import Sae
from tests.api.routes import ROUTES, SESSION, allowed, scopes_of
from tests.api.test_permissions import _text, call, undone
from tests.conftest import PEOPLE, World

RESULTS = (Adapter, Certificate, Corpus, Export, LanguageModel, Recording, Sae)


def _over(world: World) -> None:
    Job.objects.update(state="succeeded", finished_at=timezone.now(), lease_token=None, lease_expires_at=None)


def _running(world: World) -> None:
    Job.objects.update(
        state="running", finished_at=None, lease_token=uuid7(), lease_expires_at=timezone.now()
    )


def _unfinished(world: World) -> None:
    for rows in RESULTS:
        rows.objects.update(state="pending")
    Export.objects.update(gate="uncertified", artifact=None)
    Upload.objects.update(used_by=uuid7())


def _gone(world: World) -> None:
    for rows in RESULTS:
        rows.objects.update(state="failed")
    Invitation.objects.update(state="declined", settled_at=timezone.now())


STATES: tuple[Callable[[World], None], ...] = (_over, _running, _unfinished, _gone)
GRANTED = [
    (name, method)
    for (name, method), how in sorted(ROUTES.items())
    if isinstance(how.grant, Action) and how.grant is not Action.VIEW
]


@pytest.mark.parametrize(("name", "method"), GRANTED)
def test_who_may_not_learns_nothing_of_the_state(name, method, world, client_of, client_with) -> None:
    """People by their role, API tokens by their scopes."""
    how = ROUTES[name, method]
    assert isinstance(how.grant, Action)
    needed = scopes_of(method, how) or set()
    assert SESSION not in needed
    for change in STATES:
        for person in sorted(set(PEOPLE) - allowed(how.grant) - {"anonymous"}):
            with undone():
                change(world)
                answer = call(client_of(person), name, method, how, world)
            expected = how.hidden if person == "outsider" else 403
            assert answer.status_code == expected, (change.__name__, person, _text(answer))
        for scope in sorted(scope for scope in Scope if not needed <= {scope}):
            with undone():
                change(world)
                answer = call(client_with(world.people["owner"], scope), name, method, how, world)
            said = (change.__name__, scope, _text(answer))
            assert answer.status_code == 403, said
            assert answer.json()["errors"][0]["code"] == "scope_missing", said


@pytest.mark.parametrize("scope", sorted(set(Scope) - {Scope.ADMIN}))
def test_a_token_ends_no_membership_of_its_owner(scope, world, client_with) -> None:
    """Leaving is managing members: a token that may start jobs cannot throw its own person out."""
    person = world.people["editor"]
    url = reverse("project-member", kwargs={"pk": world.project.pk, "user_id": person.pk})
    answer = client_with(person, scope).delete(url)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (403, "scope_missing")
    assert Membership.objects.filter(project=world.project, user=person).exists()


@pytest.mark.parametrize("person", ["viewer", "editor"])
def test_members_leave_by_themselves(person, world, client_of, client_with) -> None:
    user = world.people[person]
    url = reverse("project-member", kwargs={"pk": world.project.pk, "user_id": user.pk})
    with undone():
        assert client_with(user, Scope.ADMIN).delete(url).status_code == 204
    assert client_of(person).delete(url).status_code == 204
    assert client_of(person).delete(url).status_code == 404


def test_the_last_owner_hears_it_only_where_they_may_leave(world, client_of, client_with) -> None:
    owner = world.people["owner"]
    url = reverse("project-member", kwargs={"pk": world.project.pk, "user_id": owner.pk})
    assert client_of("owner").delete(url).status_code == 409
    assert client_with(owner, Scope.JOBS).delete(url).status_code == 403


@pytest.mark.parametrize("what", ["cancel", "retry"])
def test_an_own_pipeline_is_controlled_by_its_editor_and_no_viewer(what, world, client_of) -> None:
    rows = {"cancel": world.pipeline, "retry": world.broken_pipeline}
    row = rows[what]
    url = reverse(f"pipeline-{what}", kwargs={"pk": row.pk})
    for person, expected in (("viewer", 403), ("editor", 200)):
        type(row).objects.filter(pk=row.pk).update(created_by=world.people[person])
        Job.objects.filter(pipeline=row).update(created_by=world.people[person])
        assert client_of(person).post(url).status_code == expected
