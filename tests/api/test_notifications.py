"""Notifications, e-mail, and webhooks that cannot be turned against the server's own network."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import http.server
import ipaddress
import json
import ssl
import threading
from datetime import timedelta

import pytest
from django.core import mail
from django.utils import timezone

from apps.jobs import leases, services
from apps.jobs.models import Job
from apps.notifications import outgoing, sending
from apps.notifications.models import Delivery, Notification, Preference, Webhook
from tests.factories import JobFactory, WorkerNodeFactory


def fail(job: Job) -> None:
    claimed = leases.claim(job_id=job.pk, node=WorkerNodeFactory())
    leases.fail(job=claimed, token=claimed.lease_token, code="x", message="It broke.", hint="Mend it.")


# --- in the application -----------------------------------------------------------------------------------


def test_who_started_a_job_hears_how_it_ended(world, client_of) -> None:
    owner, editor = client_of("owner"), client_of("editor")
    fail(world.job)
    assert owner.get("/api/v1/notifications/unread").json() == {"unread": 1}
    assert editor.get("/api/v1/notifications/unread").json() == {"unread": 0}
    note = owner.get("/api/v1/notifications", {"unread": "true"}).json()["results"][0]
    assert (note["level"], note["subject_id"], note["read_at"]) == ("error", str(world.job.pk), None)
    assert note["message"] == "It broke. Mend it."
    assert client_of("staff").get("/api/v1/notifications").json()["count"] == 0  # not even administrators
    # nobody marks another's as read
    assert editor.post("/api/v1/notifications/mark-read", {"ids": [note["id"]]}).json() == {"unread": 0}
    assert owner.get("/api/v1/notifications/unread").json() == {"unread": 1}
    assert owner.post("/api/v1/notifications/mark-read", {"ids": [note["id"]]}).json() == {"unread": 0}
    assert owner.get("/api/v1/notifications", {"unread": "true"}).json()["count"] == 0
    assert owner.get("/api/v1/notifications").json()["count"] == 1


def test_quick_jobs_are_not_worth_telling(world, run_outcome) -> None:
    quick = JobFactory(project=world.project, created_by=world.people["owner"])
    run_outcome(quick.pk, result={}, files={"n.txt": b"1"})
    assert Notification.objects.count() == 0
    slow = JobFactory(project=world.project, created_by=world.people["owner"])
    claimed = leases.claim(job_id=slow.pk, node=WorkerNodeFactory())
    Job.objects.filter(pk=slow.pk).update(started_at=timezone.now() - timedelta(minutes=2))
    leases.start(job_id=slow.pk, token=claimed.lease_token)
    out = leases.workdir(slow.pk) / "out"
    out.mkdir(parents=True)
    (out / "n.txt").write_text("1")
    from apps.artifacts import storage

    leases.succeed(
        job=claimed, token=claimed.lease_token, result={}, files=storage.list_files(out), digest=None
    )
    assert Notification.objects.get().level == "success"


def test_who_left_the_project_hears_nothing(world) -> None:
    world.project.memberships.filter(user=world.people["owner"]).delete()
    fail(world.job)
    assert Notification.objects.count() == 0


# --- e-mail -----------------------------------------------------------------------------------------------


def test_email_only_for_those_who_want_it(world, client_of, settings) -> None:
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    owner = client_of("owner")
    assert owner.get("/api/v1/notifications/preferences").json() == {"email": "none"}
    fail(world.job)
    assert Delivery.objects.filter(event="job.failed").count() == 0
    assert owner.patch("/api/v1/notifications/preferences", {"email": "problems"}).json() == {
        "email": "problems"
    }
    services.retry(actor=world.people["staff"], job=world.job)
    Job.objects.filter(pk=world.job.pk).update(title="Count\nBcc: all@example.org")
    fail(Job.objects.get(pk=world.job.pk))
    assert sending.send_due() == 1
    (message,) = mail.outbox
    assert message.to == [world.people["owner"].email]
    assert "\n" not in message.subject
    assert f"/jobs/{world.job.pk}" in message.body
    assert sending.send_due() == 0
    assert owner.patch("/api/v1/notifications/preferences", {"email": "sometimes"}).status_code == 400


# --- webhooks ---------------------------------------------------------------------------------------------


@pytest.fixture
def receiver():
    """A server that remembers what it is sent and answers what it is told to."""

    class Receiver(http.server.BaseHTTPRequestHandler):
        status, got, location = 200, [], ""

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            Receiver.got.append((dict(self.headers), self.rfile.read(size)))
            self.send_response(Receiver.status)
            if Receiver.location:
                self.send_header("Location", Receiver.location)
            self.end_headers()

        def log_message(self, *args) -> None:
            pass

    Receiver.got = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Receiver.url = f"http://127.0.0.1:{server.server_port}/hook?x=1"
    yield Receiver
    server.shutdown()
    server.server_close()


@pytest.fixture
def hook(world, client_of, receiver, settings):
    settings.WORKBENCH_WEBHOOK_PRIVATE = True
    body = {"project": str(world.project.pk), "url": receiver.url, "events": ["job.failed"]}
    answer = client_of("owner").post("/api/v1/webhooks", body)
    assert answer.status_code == 201, answer.content
    return {**answer.json()["webhook"], "secret": answer.json()["secret"]}


def test_events_arrive_signed(world, hook, receiver, client_of) -> None:
    world.webhook.delete()  # it listens to other events of the project
    fail(world.job)
    assert sending.send_due() == 1
    ((headers, body),) = receiver.got
    assert headers["X-Workbench-Event"] == "job.failed"
    moment, digest = (part.split("=", 1)[1] for part in headers[outgoing.SIGNATURE].split(","))
    expected = hmac.new(hook["secret"].encode(), moment.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert digest == expected
    sent = json.loads(body)
    assert (sent["event"], sent["data"]["id"]) == ("job.failed", str(world.job.pk))
    assert sent["data"]["error"]["code"] == "x"
    # an event nobody asked for is not sent, nor one of another project
    services.cancel(actor=world.people["staff"], job=JobFactory(project=world.project))
    fail(JobFactory())
    assert sending.send_due() == 0
    url = f"/api/v1/webhooks/{hook['id']}"
    assert "secret" not in client_of("owner").get(url).json()
    rows = client_of("owner").get(f"{url}/deliveries").json()
    assert [(row["state"], row["status"], row["attempts"]) for row in rows] == [("delivered", 200, 1)]


def test_failures_are_tried_again_and_given_up(world, hook, receiver) -> None:
    receiver.status = 500
    fail(world.job)
    assert sending.send_due() == 1
    delivery = Delivery.objects.get(event="job.failed")
    assert (delivery.state, delivery.attempts, delivery.error) == ("pending", 1, "The answer was 500.")
    assert delivery.due_at > timezone.now()
    assert sending.send_due() == 0  # not before its time
    for _ in sending.RETRIES:
        Delivery.objects.filter(event="job.failed").update(due_at=timezone.now())
        sending.send_due()
    delivery.refresh_from_db()
    assert (delivery.state, delivery.attempts) == ("failed", len(sending.RETRIES) + 1)
    receiver.status = 410  # gone: at once
    Delivery.objects.filter(event="job.failed").update(state="pending", due_at=timezone.now(), attempts=0)
    sending.send_due()
    assert Delivery.objects.get(event="job.failed").state == "failed"


def test_redirects_are_not_followed(world, hook, receiver) -> None:
    receiver.status, receiver.location = 302, receiver.url
    fail(world.job)
    sending.send_due()
    assert len(receiver.got) == 1
    assert Delivery.objects.get(event="job.failed").error == "The answer was 302."


def test_one_message_is_sent_by_one_sender(world, hook, receiver) -> None:
    fail(world.job)
    Delivery.objects.filter(event="job.failed").update(taken_until=timezone.now() + timedelta(minutes=1))
    assert sending.send_due() == 0
    Delivery.objects.filter(event="job.failed").update(
        taken_until=timezone.now() - timedelta(seconds=1)
    )  # that sender died
    assert sending.send_due() == 1


def test_a_receiver_that_is_away(world, hook) -> None:
    Webhook.objects.filter(pk=hook["id"]).update(url="http://127.0.0.1:1/")
    fail(world.job)
    assert sending.send_due() == 1
    assert "refused the connection" in Delivery.objects.get(event="job.failed").error


def test_managing_webhooks(world, hook, client_of, receiver) -> None:
    owner, url = client_of("owner"), f"/api/v1/webhooks/{hook['id']}"
    assert owner.post(f"{url}/ping").status_code == 202
    sending.send_due()
    assert json.loads(receiver.got[0][1])["event"] == "ping"
    assert owner.patch(url, {"enabled": False, "events": ["job.succeeded"]}).json()["enabled"] is False
    fail(world.job)
    assert sending.send_due() == 0
    assert owner.patch(url, {"events": ["nonsense"]}).status_code == 400
    assert client_of("editor").get("/api/v1/webhooks").json()["count"] == 0
    assert owner.get("/api/v1/webhooks").json()["count"] == 2
    assert owner.delete(url).status_code == 204
    assert list(Webhook.objects.all()) == [world.webhook]


PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
    "224.0.0.1", "255.255.255.255", "192.0.2.1", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address) -> None:
    assert not outgoing.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address) -> None:
    assert outgoing.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://[::1]/", "http://169.254.169.254/latest/meta-data",
        "ftp://example.org/", "file:///etc/passwd", "http://user:pass@example.org/", "http://",
        "http://example.org:99999/", "http://[::1", "gopher://example.org/",
    ],
)  # fmt: skip
def test_addresses_that_are_refused_when_typed(url, world, client_of) -> None:
    body = {"project": str(world.project.pk), "url": url, "events": ["job.failed"]}
    answer = client_of("owner").post("/api/v1/webhooks", body)
    assert answer.status_code == 400, answer.content
    assert answer.json()["errors"][0]["attr"] == "url"
    assert list(Webhook.objects.all()) == [world.webhook]


def resolves_to(monkeypatch, *addresses: str) -> None:
    def answer(host, port, **kwargs):
        return [(2, 1, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(outgoing.socket, "getaddrinfo", answer)


def test_names_that_lead_inside(monkeypatch, db) -> None:
    # decimal and octal spellings are names to the resolver, which turns them into addresses
    for addresses in (("127.0.0.1",), ("8.8.8.8", "10.0.0.1"), ("::ffff:169.254.169.254",)):
        resolves_to(monkeypatch, *addresses)
        with pytest.raises(outgoing.Unreachable):
            outgoing.post("http://innocent.example.org/", b"", {})


def test_a_delivery_tells_nothing_of_inner_names(monkeypatch, world, hook, settings, client_of) -> None:
    """Names that lead inside and names that do not exist: the same words, the same next try."""
    settings.WORKBENCH_WEBHOOK_PRIVATE = False
    Webhook.objects.filter(pk=hook["id"]).update(url="https://vault.corp.example/")
    told = []
    for answer in (
        ("10.1.2.3",),
        ("fd00::1",),
        ("8.8.8.8", "192.168.0.9"),
        OSError("no such name: ns1.corp"),
        (),
    ):
        Delivery.objects.all().delete()
        if isinstance(answer, OSError):

            def unknown(*args, error=answer, **kwargs):
                raise error

            monkeypatch.setattr(outgoing.socket, "getaddrinfo", unknown)
        else:
            resolves_to(monkeypatch, *answer)
        fail(type(world.job).objects.create(**_like(world.job)))
        sending.send_due()
        shown = client_of("owner").get(f"/api/v1/webhooks/{hook['id']}/deliveries").json()
        rows = shown["results"] if isinstance(shown, dict) else shown
        told.append({(row["state"], row["attempts"], row["status"], row["error"]) for row in rows})
    assert told[0] == {
        ("pending", 1, None, "The name vault.corp.example has no address on the open internet.")
    }
    assert all(one == told[0] for one in told)


def _like(job) -> dict:
    fields = ("project", "created_by", "kind", "title", "subject_type", "subject_id", "params")
    return {name: getattr(job, name) for name in fields}


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLCertVerificationError(1, "certificate is not valid for 'gw-3.corp.internal'"),
        TimeoutError("10.9.8.7 timed out"),
        ConnectionRefusedError(111, "corp.internal refused"),
        OSError(113, "No route to host gw-3.corp.internal"),
        http.client.BadStatusLine("SSH-2.0-OpenSSH corp.internal"),
        ValueError("corp.internal"),
    ],
)
def test_failures_are_told_in_our_words(error, monkeypatch, db) -> None:
    resolves_to(monkeypatch, "8.8.8.8")

    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(outgoing.socket, "create_connection", broken)
    with pytest.raises(outgoing.Unreachable) as told:
        outgoing.post("http://innocent.example.org/", b"", {})
    assert str(told.value).startswith("innocent.example.org ")
    assert "corp" not in str(told.value)
    assert "10.9" not in str(told.value)
    assert told.value.__cause__ is error  # for the log


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch, db) -> None:
    """A name that answers differently the second time: nobody asks a second time."""
    resolves_to(monkeypatch, "8.8.8.8")
    went_to = []

    def connect(address, timeout=None):
        went_to.append(address)
        raise TimeoutError

    monkeypatch.setattr(outgoing.socket, "create_connection", connect)
    with pytest.raises(outgoing.Unreachable):
        outgoing.post("https://innocent.example.org/", b"", {})
    assert went_to == [("8.8.8.8", 443)]


def test_private_address_found_at_sending_is_given_up_at_once(world, hook, settings, receiver) -> None:
    fail(world.job)
    settings.WORKBENCH_WEBHOOK_PRIVATE = False
    sending.send_due()
    delivery = Delivery.objects.get(event="job.failed")
    assert (delivery.state, receiver.got) == ("failed", [])
    assert "not an address of the open internet" in delivery.error


def test_preferences_start_at_none(world) -> None:
    assert not Preference.objects.exists()
