"""Becoming and staying a person: invitations, sign-up, passwords, second factors, single sign-on, ownership."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import hotp_value, yield_hotp_counters_from_time
from django.core import mail
from django.core.cache import cache
from django.utils import timezone
from rest_framework.test import APIClient

from apps.accounts.models import User
from apps.audit.models import AuditEvent
from apps.projects.models import Invitation, Membership
from tests.factories import PASSWORD, MembershipFactory, UserFactory
from workbench.settings.env import email_config

ALLAUTH = "/_allauth/browser/v1"
SIGNUP, LOGIN = f"{ALLAUTH}/auth/signup", f"{ALLAUTH}/auth/login"


@pytest.fixture(autouse=True)
def _fresh_limits():
    cache.clear()  # sign-in limits are counted there


def error(response) -> dict:
    return response.json()["errors"][0]


# --- invitations --------------------------------------------------------------------------------------------


@pytest.fixture
def invited(world, client_of, django_capture_on_commit_callbacks):
    """An address that was invited; the secret of the link in the mail."""
    url = f"/api/v1/projects/{world.project.pk}/invitations"
    with django_capture_on_commit_callbacks(execute=True):
        answer = client_of("owner").post(url, {"email": "dora@example.org", "role": "editor"})
    assert answer.status_code == 201
    shown = answer.json()["link"]
    assert mail.outbox[0].to == ["dora@example.org"]
    mailed = re.search(r"\S+/invitations/\S+", mail.outbox[0].body)[0]
    assert mailed.startswith(f"{shown}.")  # the one in the mail proves that it was read there
    return mailed.rsplit("/", 1)[1]


def sign_up(text: str = "", **values: str):
    body = {"username": "dora", "email": "dora@example.org", "password": "correct horse battery", **values}
    client = APIClient(headers={"X-Invitation": text} if text else {})
    return client, client.post(SIGNUP, body)


def test_invited_people_sign_up_and_join(world, invited) -> None:
    offer = APIClient().post("/api/v1/invitations/look", {"text": invited}).json()
    assert (offer["project_name"], offer["role"], offer["may_sign_up"]) == (
        world.project.name,
        "editor",
        True,
    )
    client, answer = sign_up(invited)
    assert answer.status_code == 200, answer.content
    assert User.objects.get(username="dora").emailaddress_set.get().verified
    joined = client.post("/api/v1/invitations/accept", {"text": invited})
    assert (joined.status_code, joined.json()["role"]) == (200, "editor")
    assert Invitation.objects.get(email="dora@example.org").accepted_by.username == "dora"
    again = client.post("/api/v1/invitations/accept", {"text": invited})
    assert again.status_code == 404
    actions = set(AuditEvent.objects.values_list("action", flat=True))
    assert {"invitation.created", "invitation.accepted", "user.signed_up"} <= actions
    assert invited not in str(list(Invitation.objects.values()))


@pytest.mark.parametrize("text", ["", "guess", "\x00", "ж" * 100])
def test_without_an_invitation_nobody_signs_up(world, text) -> None:
    client = APIClient()
    body = {"username": "dora", "email": "dora@example.org", "password": "correct horse battery"}
    answer = client.post(SIGNUP, body, HTTP_X_INVITATION=text)
    assert answer.status_code == 403
    assert not User.objects.filter(username="dora").exists()


def test_an_invitation_is_for_its_address(world, invited) -> None:
    _, answer = sign_up(invited, email="other@example.org")
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["code"] == "other_address"


@pytest.mark.parametrize("ending", ["expired", "revoked", "declined", "replaced"])
def test_invitations_end(ending, world, invited, client_of) -> None:
    row = Invitation.objects.get(email="dora@example.org")
    url = f"/api/v1/projects/{world.project.pk}/invitations"
    if ending == "expired":
        Invitation.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    elif ending == "revoked":
        assert client_of("owner").delete(f"{url}/{row.pk}").status_code == 204
        assert client_of("owner").delete(f"{url}/{row.pk}").status_code == 409
    elif ending == "declined":
        assert APIClient().post("/api/v1/invitations/decline", {"text": invited}).status_code == 204
    else:
        client_of("owner").post(url, {"email": "DORA@example.org", "role": "viewer"})
    for path in ("look", "accept", "decline"):
        assert client_of("outsider").post(f"/api/v1/invitations/{path}", {"text": invited}).status_code == 404
    assert sign_up(invited)[1].status_code == 403


def test_invitations_of_members_and_of_others(world, foreign, client_of) -> None:
    owner, url = client_of("owner"), f"/api/v1/projects/{world.project.pk}/invitations"
    assert owner.delete(f"{url}/{foreign.invitation.pk}").status_code == 404
    assert [row["email"] for row in owner.get(url).json()] == [world.invitation.email]
    # nobody learns whose address it is by inviting it; the member does, by accepting
    answer = owner.post(url, {"email": world.people["viewer"].email.upper(), "role": "editor"})
    assert answer.status_code == 201
    text = {"text": answer.json()["link"].rsplit("/", 1)[1]}
    again = client_of("viewer").post("/api/v1/invitations/accept", text)
    assert (again.status_code, error(again)["code"]) == (409, "already_member")


def test_sign_up_modes(world, invited, settings) -> None:
    settings.WORKBENCH_SIGNUP = "open"
    assert sign_up(username="eve", email="eve@example.org")[1].status_code == 200
    weak = sign_up(username="fay", email="fay@example.org", password="12345")[1]
    assert weak.status_code == 400
    taken = sign_up(username="EVE", email="new@example.org")[1]
    assert (taken.status_code, taken.json()["errors"][0]["param"]) == (400, "username")
    settings.WORKBENCH_SIGNUP = "closed"
    assert sign_up(invited)[1].status_code == 403


# --- whose invitation, whose address --------------------------------------------------------------------------


def test_an_invitation_is_accepted_with_its_address_only(world, invited, client_of) -> None:
    """A mail that was passed on, or a link that was seen over a shoulder, lets nobody else in."""
    other = client_of("outsider")
    answer = other.post("/api/v1/invitations/accept", {"text": invited})
    assert (answer.status_code, error(answer)["code"]) == (409, "other_address")
    assert "dora" not in answer.content.decode()
    user = world.people["outsider"]
    address = EmailAddress.objects.create(user=user, email="Dora@example.org", verified=False)
    assert other.post("/api/v1/invitations/accept", {"text": invited}).status_code == 409
    EmailAddress.objects.filter(pk=address.pk).update(verified=True)
    assert other.post("/api/v1/invitations/accept", {"text": invited}).json()["role"] == "editor"


def test_who_invites_cannot_become_the_invited(world, invited, client_of) -> None:
    """The link that is shown to the sender makes no account with the address of somebody else."""
    shown = invited.partition(".")[0]
    assert APIClient().post("/api/v1/invitations/look", {"text": shown}).json()["may_sign_up"] is False
    for text in (shown, f"{shown}.", f"{shown}.{'0' * 43}", f"{invited}0"):
        assert sign_up(text)[1].status_code == 403, text
    assert not User.objects.filter(email="dora@example.org").exists()
    existing = UserFactory(email="dora@example.org")
    assert client_of(existing).post("/api/v1/invitations/accept", {"text": shown}).status_code == 200


def test_where_no_mail_is_sent_the_shown_link_makes_accounts(world, invited, settings) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"
    _, answer = sign_up(invited.partition(".")[0])
    assert answer.status_code == 200
    assert not User.objects.get(username="dora").emailaddress_set.get().verified


@pytest.mark.parametrize("person", ["viewer", "editor", "owner", "staff"])
def test_addresses_of_members_are_shown_to_themselves_and_staff(person, world, client_of) -> None:
    url = f"/api/v1/projects/{world.project.pk}/members"
    shown = {row["username"]: row["email"] for row in client_of(person).get(url).json()}
    me = world.people[person]
    for row in Membership.objects.filter(project=world.project).select_related("user"):
        visible = person == "staff" or row.user_id == me.pk
        assert shown[row.user.username] == (row.user.email if visible else None)


def test_no_answer_in_the_project_has_the_address_of_a_colleague(world, client_of) -> None:
    """Every route a viewer or an owner may call, in one go."""
    from tests.api.routes import ROUTES, allowed
    from tests.api.test_permissions import call, undone

    others = {user.email for name, user in world.people.items() if user is not None}
    for person in ("viewer", "owner"):
        known = {world.people[person].email}
        for (name, method), how in ROUTES.items():
            if person in allowed(how.grant):
                with undone():
                    answer = call(client_of(person), name, method, how, world)
                found = {email for email in others - known if not answer.streaming and email in answer.text}
                assert not found, (person, name, method)


def test_addresses_cannot_be_tried(world, client_of, django_capture_on_commit_callbacks) -> None:
    """Whatever takes an address answers the same whether somebody here has it or not."""
    taken, free = world.people["outsider"].email, "nobody@example.org"
    owner, project = client_of("owner"), f"/api/v1/projects/{world.project.pk}"

    def answers(email: str) -> list[tuple[int, str]]:
        cache.clear()
        added = owner.post(f"{project}/members", {"user": email, "role": "viewer"})
        invited = owner.post(f"{project}/invitations", {"email": email, "role": "viewer"})
        link = {"text": invited.json()["link"].rsplit("/", 1)[1]}
        looked = APIClient().post("/api/v1/invitations/look", link)
        signed_up = sign_up(link["text"], email=email)[1]
        forgotten = APIClient().post(f"{ALLAUTH}/auth/password/request", {"email": email})
        wrong = APIClient().post(LOGIN, {"email": email, "password": "wrong"})
        own = owner.post(f"{ALLAUTH}/account/email", {"email": email})
        said = [added, invited, looked, signed_up, forgotten, wrong, own]
        varied = re.compile(r'"(link|id|created_at|expires_at)":\s?"[^"]*"')
        return [(one.status_code, varied.sub("", one.text).replace(email, "EMAIL")) for one in said]

    assert answers(taken) == answers(free)


@pytest.mark.parametrize("mode", ["closed", "invitation"])
def test_strangers_cannot_try_addresses_where_they_may_not_sign_up(mode, world, settings) -> None:
    settings.WORKBENCH_SIGNUP = mode
    for email in (world.people["viewer"].email, "new@example.org"):
        answer = sign_up(email=email)[1]
        assert (answer.status_code, answer.json()) == (403, {"status": 403})


def test_open_sign_up_with_verification_does_not_tell_which_addresses_are_taken(world, settings) -> None:
    settings.WORKBENCH_SIGNUP = "open"
    settings.ACCOUNT_EMAIL_VERIFICATION = "mandatory"
    said = []
    for number, email in enumerate((world.people["viewer"].email, "new@example.org")):
        cache.clear()
        answer = sign_up(username=f"somebody{number}", email=email)[1]
        said.append((answer.status_code, [flow["id"] for flow in answer.json()["data"]["flows"]]))
    assert said[0] == said[1]
    assert User.objects.filter(email=world.people["viewer"].email).count() == 1


# --- mails and guesses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:4444", "[::1]"])
def test_links_in_mails_have_the_configured_address(host, world, settings) -> None:
    """Never the ``Host`` of the request: its sender chooses that, and the reader of the mail follows the link."""
    settings.WORKBENCH_PUBLIC_URL = "https://lab.example.org"
    settings.WORKBENCH_SIGNUP, settings.ACCOUNT_EMAIL_VERIFICATION = "open", "mandatory"
    headers = {"host": host, "x-forwarded-host": "evil.example"}
    request = f"{ALLAUTH}/auth/password/request"
    for email in (world.people["viewer"].email, "unknown@example.org"):
        assert APIClient(headers=headers).post(request, {"email": email}).status_code == 200
    body = {"username": "eve", "email": "eve@example.org", "password": "correct horse battery"}
    assert APIClient(headers=headers).post(SIGNUP, body).status_code == 401
    taken = {**body, "username": "fay", "email": world.people["editor"].email}
    assert APIClient(headers=headers).post(SIGNUP, taken).status_code == 401
    assert len(mail.outbox) == 4
    for message in mail.outbox:
        whole = message.subject + message.body
        assert host not in whole
        assert "evil" not in whole
        links = re.findall(r"https?://\S+", whole)
        assert links
        assert {link.split("/")[2].rstrip(".") for link in links} == {"lab.example.org"}


def login(world, address: str, password: str = "wrong", who: str = "", host: str = "testserver"):
    body = {"username": who or world.people["viewer"].username, "password": password}
    return APIClient(headers={"host": host}).post(LOGIN, body, REMOTE_ADDR=address)


def test_guesses_from_one_address_keep_nobody_out_elsewhere(world, settings) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    known = APIClient()
    right = {"username": world.people["viewer"].username, "password": PASSWORD}
    assert known.post(LOGIN, right, REMOTE_ADDR="192.0.2.7").status_code == 200
    said = {login(world, "198.51.100.66", host=f"h{n}.example").text for n in range(8)}
    assert any("too_many_login_attempts" in text for text in said)  # whatever the name of the host it asks
    # even the right password does not help there now …
    assert login(world, "198.51.100.66", PASSWORD).status_code == 400
    # … but it does from everywhere else, and who is signed in stays so
    assert login(world, "192.0.2.8", PASSWORD).status_code == 200
    assert known.get("/api/v1/me").status_code == 200
    assert known.post(f"{ALLAUTH}/auth/reauthenticate", {"password": PASSWORD}).status_code == 200
    # and others behind the guesser's address are not kept out with them
    assert login(world, "198.51.100.66", PASSWORD, world.people["editor"].username).status_code == 200


def test_guesses_from_one_network_count_together(world) -> None:
    """Whoever has one IPv6 address has 2⁶⁴."""
    texts = [login(world, f"2001:db8:1:2::{n:x}").text for n in range(1, 9)]
    assert "too_many_login_attempts" in texts[-1]
    assert login(world, "2001:db8:1:3::1", PASSWORD).status_code == 200


# --- ownership ----------------------------------------------------------------------------------------------


def test_transfer(world, client_of) -> None:
    owner, url = client_of("owner"), f"/api/v1/projects/{world.project.pk}/transfer"
    heir = world.people["editor"]
    assert owner.post(url, {"user": str(world.people["outsider"].pk)}).status_code == 404
    assert owner.post(url, {"user": str(heir.pk)}).json()["role"] == "owner"
    roles = dict(Membership.objects.filter(project=world.project).values_list("user__username", "role"))
    assert (roles[heir.username], roles[world.people["owner"].username]) == ("owner", "editor")
    assert owner.post(url, {"user": str(heir.pk)}).status_code == 403
    second = MembershipFactory(project=world.project, role="owner").user
    answer = client_of(heir).post(url, {"user": str(second.pk)})
    assert (answer.status_code, error(answer)["code"]) == (409, "already_owner")
    assert AuditEvent.objects.filter(action="project.transferred").count() == 1


# --- passwords ----------------------------------------------------------------------------------------------


def test_forgotten_password(world) -> None:
    user = world.people["viewer"]
    client = APIClient()
    assert client.post(f"{ALLAUTH}/auth/password/request", {"email": user.email}).status_code == 200
    key = re.search(r"/password/reset/(\S+)", mail.outbox[-1].body)[1]
    answer = client.post(f"{ALLAUTH}/auth/password/reset", {"key": key, "password": "another long secret"})
    assert answer.status_code in (200, 401)  # 401: done, and nobody is signed in by it
    user.refresh_from_db()
    assert user.check_password("another long secret")
    again = client.post(f"{ALLAUTH}/auth/password/reset", {"key": key, "password": "a third long secret"})
    assert again.status_code == 400
    unknown = client.post(f"{ALLAUTH}/auth/password/request", {"email": "nobody@example.org"})
    assert unknown.status_code == 200  # a stranger does not learn who has an account


def test_new_password(world, client_of) -> None:
    client, url = client_of("viewer"), f"{ALLAUTH}/account/password/change"
    wrong = client.post(url, {"current_password": "no", "new_password": "another long secret"})
    assert wrong.status_code == 400
    right = client.post(url, {"current_password": PASSWORD, "new_password": "another long secret"})
    assert right.status_code == 200
    assert client.get("/api/v1/me").status_code == 200
    assert AuditEvent.objects.filter(action="user.password_changed").count() == 1


def test_own_name(world, client_of) -> None:
    answer = client_of("viewer").patch("/api/v1/me", {"first_name": "Ada", "is_staff": True})
    assert (answer.json()["first_name"], answer.json()["is_staff"]) == ("Ada", False)


# --- second factor ------------------------------------------------------------------------------------------

TOTP = f"{ALLAUTH}/account/authenticators/totp"


def code_of(secret: str) -> str:
    counter = sorted(yield_hotp_counters_from_time())[1]
    return f"{hotp_value(secret, counter):06d}"


@pytest.fixture
def enrolled(transactional_db, world):
    """A client that signed in with a password and set up codes; the secret."""
    client = APIClient()
    client.post(LOGIN, {"username": world.people["viewer"].username, "password": PASSWORD})
    secret = client.get(TOTP).json()["meta"]["secret"]
    picture = client.get("/api/v1/me/totp-qr")
    assert picture["Content-Type"] == "image/svg+xml"
    assert b"<svg" in picture.content
    assert client.post(TOTP, {"code": "000000"}).status_code == 400
    # a window left open is not enough: the password is asked for again
    assert client.post(TOTP, {"code": code_of(secret)}).status_code == 401
    assert client.post(f"{ALLAUTH}/auth/reauthenticate", {"password": PASSWORD}).status_code == 200
    cache.clear()  # a code works once, here too
    assert client.post(TOTP, {"code": code_of(secret)}).status_code == 200
    cache.clear()
    return client, secret


def test_codes_are_asked_for_at_sign_in(enrolled, world) -> None:
    _, secret = enrolled
    client = APIClient()
    first = client.post(LOGIN, {"username": world.people["viewer"].username, "password": PASSWORD})
    assert first.status_code == 401
    pending = [flow["id"] for flow in first.json()["data"]["flows"] if flow.get("is_pending")]
    assert pending == ["mfa_authenticate"]
    assert client.get("/api/v1/me").status_code == 401
    assert client.post(f"{ALLAUTH}/auth/2fa/authenticate", {"code": "000000"}).status_code == 400
    done = client.post(f"{ALLAUTH}/auth/2fa/authenticate", {"code": code_of(secret)})
    assert done.status_code == 200
    assert client.get("/api/v1/me").status_code == 200


def test_recovery_codes_work_once(enrolled, world) -> None:
    client, _ = enrolled
    codes = client.get(f"{ALLAUTH}/account/authenticators/recovery-codes").json()["data"]["unused_codes"]
    assert len(codes) == 10
    for expected in (200, 400):
        other = APIClient()
        other.post(LOGIN, {"username": world.people["viewer"].username, "password": PASSWORD})
        assert other.post(f"{ALLAUTH}/auth/2fa/authenticate", {"code": codes[0]}).status_code == expected
        cache.clear()


def test_secrets_are_stored_encrypted(enrolled, settings) -> None:
    _, secret = enrolled
    for row in Authenticator.objects.all():
        assert secret not in str(row.data)
    totp = Authenticator.objects.get(type="totp").wrap()
    assert totp.validate_code(code_of(secret))
    cache.clear()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another-" + "y" * 50
    assert totp.validate_code(code_of(secret))


def test_second_factors_are_audited_and_can_be_removed(enrolled) -> None:
    client, _ = enrolled
    assert client.delete(TOTP).status_code == 200
    actions = list(AuditEvent.objects.values_list("action", flat=True))
    assert "user.second_factor_added" in actions
    assert "user.second_factor_removed" in actions


def test_the_administration_has_no_sign_in_of_its_own(world) -> None:
    """Its form asks for a password only: it would be a way around the second factor."""
    client = APIClient()
    answer = client.get("/admin/login/?next=/admin/jobs/job/")
    assert (answer.status_code, answer["Location"]) == (302, "/login?next=%2Fadmin%2Fjobs%2Fjob%2F")
    body = {"username": world.people["staff"].username, "password": PASSWORD}
    assert client.post("/admin/login/", body, format="multipart").status_code == 302
    assert client.get("/api/v1/me").status_code == 401
    client.force_login(world.people["staff"])
    assert client.get("/admin/login/?next=/admin/jobs/job/")["Location"] == "/admin/jobs/job/"
    assert client.get("/admin/login/?next=https://evil.example/")["Location"] == "/admin/"
    client.force_login(world.people["owner"])
    assert client.get("/admin/login/").status_code == 403


# --- mail ---------------------------------------------------------------------------------------------------


def test_mail_settings() -> None:
    smtp = email_config("smtp://me%40x:p%2Fw@mail.example.org")
    assert (smtp["EMAIL_HOST_USER"], smtp["EMAIL_HOST_PASSWORD"]) == ("me@x", "p/w")
    assert (smtp["EMAIL_PORT"], smtp["EMAIL_USE_TLS"], smtp["EMAIL_USE_SSL"]) == (587, True, False)
    assert email_config("smtps://h")["EMAIL_PORT"] == 465
    assert email_config("smtp://h:25?starttls=0")["EMAIL_USE_TLS"] is False
    assert email_config("file:///tmp/mail")["EMAIL_FILE_PATH"] == "/tmp/mail"
    for wrong in ("ftp://x", "smtp://", "mail"):
        with pytest.raises(Exception, match="WORKBENCH_EMAIL_URL"):
            email_config(wrong)
