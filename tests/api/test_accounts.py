"""Signing in and out, and who belongs to a project."""

from __future__ import annotations

import pytest
from django.core.cache import cache
from django.db import IntegrityError, transaction
from rest_framework.test import APIClient

from apps.accounts.models import User
from apps.accounts.services import ensure_user
from apps.audit.models import AuditEvent
from apps.projects.models import Membership
from tests.factories import PASSWORD, UserFactory

LOGIN, SESSION = "/_allauth/browser/v1/auth/login", "/_allauth/browser/v1/auth/session"


@pytest.fixture
def person(db) -> User:
    cache.clear()  # sign-in limits are counted there
    return UserFactory(username="Alice", email="alice@example.org")


def error(response) -> dict:
    return response.json()["errors"][0]


@pytest.mark.parametrize(
    "given", [{"username": "Alice"}, {"username": "alice"}, {"email": "Alice@Example.org"}]
)
def test_sign_in_by_name_or_address(person, given) -> None:
    client = APIClient()
    assert client.get("/api/v1/me").status_code == 401
    assert client.post(LOGIN, {**given, "password": PASSWORD}).status_code == 200
    assert client.get("/api/v1/me").json()["username"] == "Alice"
    assert client.get(SESSION).json()["meta"]["is_authenticated"] is True
    assert client.delete(SESSION).status_code == 401  # allauth says: nobody is signed in now
    assert client.get("/api/v1/me").status_code == 401


def test_wrong_password_and_unknown_person_look_alike(person) -> None:
    client = APIClient()
    wrong = client.post(LOGIN, {"username": "Alice", "password": "wrong password"})
    unknown = client.post(LOGIN, {"username": "Nobody", "password": "wrong password"})
    assert wrong.status_code == unknown.status_code == 400
    assert wrong.json()["errors"][0]["message"] == unknown.json()["errors"][0]["message"]


def test_guessing_is_limited(person) -> None:
    client = APIClient()
    for _ in range(5):
        assert client.post(LOGIN, {"username": "Alice", "password": "guess"}).status_code == 400
    blocked = client.post(LOGIN, {"username": "Alice", "password": PASSWORD})
    assert blocked.status_code in (400, 429)
    assert client.get("/api/v1/me").status_code == 401


def test_nobody_signs_up(person) -> None:
    body = {"username": "mallory", "email": "m@example.org", "password": "a long enough password"}
    assert APIClient().post("/_allauth/browser/v1/auth/signup", body).status_code == 403
    assert not User.objects.filter(username="mallory").exists()


def test_inactive_people_cannot_sign_in(person) -> None:
    User.objects.update(is_active=False)
    client = APIClient()
    client.post(LOGIN, {"username": "Alice", "password": PASSWORD})
    assert client.get("/api/v1/me").status_code == 401


def test_names_and_addresses_are_unique_whatever_their_case(person) -> None:
    for values in ({"username": "ALICE"}, {"email": "ALICE@example.org"}):
        with pytest.raises(IntegrityError), transaction.atomic():
            UserFactory(**values)


def test_ensure_user_changes_nobody(person) -> None:
    same, created = ensure_user(
        username="alice", email="x@example.org", password="other password", staff=True
    )
    assert (same.pk, created) == (person.pk, False)
    person.refresh_from_db()
    assert person.check_password(PASSWORD)
    assert not person.is_staff
    made, created = ensure_user(username="ben", email="ben@example.org", password="other password")
    assert created
    assert made.check_password("other password")


# --- members ------------------------------------------------------------------------------------------------


def test_members_are_added_by_name(world, client_of) -> None:
    owner, url = client_of("owner"), f"/api/v1/projects/{world.project.pk}/members"
    outsider = world.people["outsider"]
    by_address = owner.post(url, {"user": outsider.email, "role": "viewer"})
    assert (by_address.status_code, error(by_address)["code"]) == (400, "unknown_user")
    assert "invite" in error(by_address)["hint"]
    added = owner.post(url, {"user": outsider.username.upper(), "role": "viewer"})
    assert (added.status_code, added.json()["username"]) == (201, outsider.username)
    assert client_of("outsider").get(f"/api/v1/projects/{world.project.pk}").json()["role"] == "viewer"
    again = owner.post(url, {"user": outsider.username, "role": "editor"})
    assert (again.status_code, error(again)["code"]) == (409, "already_member")
    unknown = owner.post(url, {"user": "nobody", "role": "editor"})
    assert (unknown.status_code, error(unknown)["code"]) == (400, "unknown_user")
    assert owner.post(url, {"user": "nobody", "role": "king"}).status_code == 400
    assert AuditEvent.objects.filter(action="member.added").count() == 1


def test_the_last_owner_stays(world, client_of) -> None:
    owner = client_of("owner")
    me = f"/api/v1/projects/{world.project.pk}/members/{world.people['owner'].pk}"
    for response in (owner.patch(me, {"role": "viewer"}), owner.delete(me)):
        assert (response.status_code, error(response)["code"]) == (409, "last_owner")
    editor = f"/api/v1/projects/{world.project.pk}/members/{world.people['editor'].pk}"
    assert owner.patch(editor, {"role": "owner"}).status_code == 200
    assert owner.delete(me).status_code == 204
    assert owner.get(f"/api/v1/projects/{world.project.pk}").status_code == 404


def test_members_may_leave(world, client_of) -> None:
    viewer = world.people["viewer"]
    url = f"/api/v1/projects/{world.project.pk}/members/{viewer.pk}"
    assert client_of("viewer").delete(url).status_code == 204
    assert not Membership.objects.filter(user=viewer).exists()


def test_slugs_find_a_free_place(world, client_of) -> None:
    owner = client_of("owner")
    first = owner.post("/api/v1/projects", {"name": "My Project"}).json()
    second = owner.post("/api/v1/projects", {"name": "My project!"}).json()
    assert (first["slug"], second["slug"]) == ("my-project", "my-project-2")
    assert first["role"] == "owner"
    taken = owner.post("/api/v1/projects", {"name": "x", "slug": "my-project"})
    assert (taken.status_code, error(taken)["attr"]) == (400, "slug")
    assert owner.post("/api/v1/projects", {"name": "计划"}).json()["slug"] == "project"
