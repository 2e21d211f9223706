"""API tokens: made, used, renewed, ended. What each scope opens is tested in test_permissions."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.cache import cache
from django.utils import timezone
from rest_framework.test import APIClient

from apps.accounts.models import ApiToken
from apps.accounts.scopes import Scope
from apps.accounts.tokens import MAX_TOKENS, rotate_token
from apps.audit.models import AuditEvent
from tests.factories import ApiTokenFactory, MembershipFactory

URL = "/api/v1/tokens"


def error(response) -> dict:
    return response.json()["errors"][0]


def bearer(secret: str) -> APIClient:
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def made(world, client_of):
    """A token of the owner as the API gives it out."""
    answer = client_of("owner").post(URL, {"name": "ci", "scopes": ["jobs"]})
    assert answer.status_code == 201
    assert answer["Cache-Control"] == "no-store"
    return answer.json()


def test_shown_once_and_kept_as_a_digest(made, world, client_of) -> None:
    secret, token = made["secret"], made["token"]
    assert secret.startswith(f"iwb_{token['key']}_")
    assert token["scopes"] == ["jobs", "read"]
    row = ApiToken.objects.get(pk=token["id"])
    for value in row.__dict__.values():
        assert secret.rsplit("_", 1)[1] not in str(value)
    for answer in (client_of("owner").get(URL), client_of("owner").get(f"{URL}/{token['id']}")):
        assert secret not in answer.content.decode()
        assert row.digest not in answer.content.decode()
    assert bearer(secret).get("/api/v1/me").json()["username"] == world.people["owner"].username


def test_lists_are_personal(made, client_of) -> None:
    assert made["token"]["id"] in {row["id"] for row in client_of("owner").get(URL).json()["results"]}
    for person in ("editor", "staff"):
        assert client_of(person).get(URL).json()["count"] == 0
        assert client_of(person).delete(f"{URL}/{made['token']['id']}").status_code == 404


@pytest.mark.parametrize(
    "text",
    ["", "x", "iwb__", "iwb_aaaaaaaaaaaa_wrong", "iwb_\x00_x", "Basic", "iwb_" + "a" * 5000, "ж" * 8],
)
def test_wrong_tokens_are_nobody(text, made) -> None:
    client = APIClient(headers={"Authorization": f"Bearer {text}"})
    answer = client.get("/api/v1/me")
    assert (answer.status_code, error(answer)["code"]) == (401, "token_invalid")
    assert answer["WWW-Authenticate"] == "Bearer"


def test_the_right_key_with_another_secret(made) -> None:
    wrong = made["secret"][:-1] + ("A" if made["secret"][-1] != "A" else "B")
    assert error(bearer(wrong).get("/api/v1/me"))["code"] == "token_invalid"


def test_a_cookie_does_not_help_a_bad_token(made, client_of) -> None:
    client = client_of("owner")
    assert client.get("/api/v1/me").status_code == 200
    assert client.get("/api/v1/me", headers={"Authorization": "Bearer iwb_x_y"}).status_code == 401
    assert client.get("/api/v1/me", headers={"Authorization": "Basic abc"}).status_code == 401


def test_no_csrf_token_is_needed(world, client_with) -> None:
    client = client_with(world.people["owner"], "admin")
    client.handler.enforce_csrf_checks = True
    answer = client.patch(f"/api/v1/projects/{world.project.pk}", {"name": "Renamed by a program"})
    assert answer.status_code == 200


def test_expiry(made, client_of) -> None:
    ApiToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    answer = bearer(made["secret"]).get("/api/v1/me")
    assert (answer.status_code, error(answer)["code"]) == (401, "token_expired")
    assert client_of("owner").get(f"{URL}/{made['token']['id']}").json()["expired"] is True
    past = {"name": "n", "scopes": [], "expires_at": timezone.now() - timedelta(days=1)}
    assert error(client_of("owner").post(URL, past))["attr"] == "expires_at"


def test_last_use_is_noted_once_a_minute(made, django_assert_num_queries) -> None:
    client, row = bearer(made["secret"]), ApiToken.objects.get(pk=made["token"]["id"])
    assert row.last_used_at is None
    client.get("/api/v1/me")
    row.refresh_from_db()
    assert timezone.now() - row.last_used_at < timedelta(seconds=20)
    with django_assert_num_queries(1):
        client.get("/api/v1/me")
    long_ago = timezone.now() - timedelta(minutes=5)
    ApiToken.objects.update(last_used_at=long_ago)
    client.get("/api/v1/me")
    row.refresh_from_db()
    assert row.last_used_at > long_ago


def test_rotation_ends_the_old_secret(made, client_of) -> None:
    answer = client_of("owner").post(f"{URL}/{made['token']['id']}/rotate")
    assert answer.status_code == 200
    assert answer.json()["token"]["key"] == made["token"]["key"]
    assert bearer(made["secret"]).get("/api/v1/me").status_code == 401
    assert bearer(answer.json()["secret"]).get("/api/v1/me").status_code == 200
    renewed = bearer(answer.json()["secret"]).post(f"{URL}/current/rotate")
    assert bearer(answer.json()["secret"]).get("/api/v1/me").status_code == 401
    assert bearer(renewed.json()["secret"]).get("/api/v1/me").status_code == 200


def test_rotation_starts_the_lifetime_anew(world) -> None:
    made_at = timezone.now() - timedelta(days=20)
    token = ApiTokenFactory(user=world.people["owner"], expires_at=made_at + timedelta(days=30))
    ApiToken.objects.filter(pk=token.pk).update(created_at=made_at)
    token.refresh_from_db()
    token, _ = rotate_token(actor=world.people["owner"], token=token)
    assert timedelta(days=29) < token.expires_at - timezone.now() <= timedelta(days=30)


def test_revoked_for_good(made, client_of) -> None:
    url = f"{URL}/{made['token']['id']}"
    assert client_of("owner").delete(url).status_code == 204
    answer = bearer(made["secret"]).get("/api/v1/me")
    assert (answer.status_code, error(answer)["code"]) == (401, "token_revoked")
    assert client_of("owner").get(url).status_code == 404


def test_switched_off_people_have_no_tokens(made, world) -> None:
    world.people["owner"].is_active = False
    world.people["owner"].save()
    assert error(bearer(made["secret"]).get("/api/v1/me"))["code"] == "account_inactive"


def test_everything_is_audited_with_the_token(made, world, client_with, client_of) -> None:
    client = client_with(world.people["owner"], "write")
    client.delete(f"/api/v1/patches/{world.patch.pk}")
    event = AuditEvent.objects.get(action="patch.deleted")
    assert (event.actor_name, event.token_id) == (world.people["owner"].username, client.token.pk)
    client_of("owner").post(f"{URL}/{made['token']['id']}/rotate")
    client_of("owner").delete(f"{URL}/{made['token']['id']}")
    actions = list(
        AuditEvent.objects.filter(target_id=made["token"]["id"])
        .order_by("pk")
        .values_list("action", flat=True)
    )
    assert actions == ["token.created", "token.rotated", "token.revoked"]
    assert made["secret"] not in str(list(AuditEvent.objects.values()))


def test_staff_rights_need_the_admin_scope(world, client_with) -> None:
    staff, url = world.people["staff"], f"/api/v1/projects/{world.project.pk}"
    assert client_with(staff, "read", "write", "jobs", "artifacts").get(url).status_code == 404
    assert client_with(staff, "admin").get(url).status_code == 200


def test_a_bound_token_sees_one_project(world, foreign, client_with) -> None:
    owner = world.people["owner"]
    MembershipFactory(project=foreign.project, user=owner, role="owner")
    client = client_with(owner, *Scope, project=foreign.project)
    for name in ("projects", "models", "jobs", "saes", "patches"):
        rows = client.get(f"/api/v1/{name}").json()["results"]
        assert {row.get("project", row["id"]) for row in rows} == {str(foreign.project.pk)}
    answer = client.post("/api/v1/projects", {"name": "new"})
    assert (answer.status_code, error(answer)["code"]) == (403, "token_bound_to_project")


def test_only_own_projects_can_be_bound(world, foreign, client_of) -> None:
    body = {"name": "n", "scopes": [], "project": str(foreign.project.pk)}
    answer = client_of("owner").post(URL, body)
    assert (answer.status_code, error(answer)["code"], error(answer)["attr"]) == (
        400,
        "does_not_exist",
        "project",
    )


def test_there_is_a_limit(world, client_of) -> None:
    for _ in range(MAX_TOKENS - 1):
        ApiTokenFactory(user=world.people["owner"])
    answer = client_of("owner").post(URL, {"name": "n", "scopes": []})
    assert (answer.status_code, error(answer)["code"]) == (409, "too_many_tokens")
    assert str(MAX_TOKENS) in error(answer)["detail"]


def test_requests_are_counted_per_token(world, client_with, client_of, settings) -> None:
    cache.clear()
    settings.WORKBENCH_RATE_LIMIT = "3/minute"
    first, second = (client_with(world.people["viewer"]) for _ in range(2))
    for _ in range(3):
        assert first.get("/api/v1/me").status_code == 200
    refused = first.get("/api/v1/me")
    assert (refused.status_code, error(refused)["code"]) == (429, "rate_limited")
    assert "3 requests within 60 s" in error(refused)["detail"]
    assert 0 < int(refused["Retry-After"]) <= 60
    assert second.get("/api/v1/me").status_code == 200
    assert client_of("viewer").get("/api/v1/me").status_code == 200
    cache.clear()


def test_a_dead_cache_refuses_nobody(world, client_of, monkeypatch) -> None:
    from apps.core import throttling

    class Dead:
        def get(self, *args):
            raise ConnectionError("no broker")

    monkeypatch.setattr(throttling, "cache", Dead())
    assert client_of("viewer").get("/api/v1/me").status_code == 200
