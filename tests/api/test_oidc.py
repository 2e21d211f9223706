"""Sign-in through an OpenID Connect provider: a real one, on this machine, that believes everybody."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from django.core.cache import cache
from django.test import Client

from apps.accounts.models import User
from tests.factories import UserFactory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from oidc_provider_mock import User as Subject
    from oidc_provider_mock import run_server_in_thread

REDIRECT = "/_allauth/browser/v1/auth/provider/redirect"


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """The address of a provider that knows Ada and Ben."""
    ada = Subject(sub="ada", claims={"email": "ada@example.org", "name": "Ada Lovelace"})
    ben = Subject(sub="ben", claims={"email": "ben@example.org", "name": "Ben"})
    with run_server_in_thread(user_claims=(ada, ben)) as server:
        yield f"http://localhost:{server.server_port}"


@pytest.fixture
def trusted() -> bool:
    return False


@pytest.fixture(autouse=True)
def configured(settings: Any, provider: str, trusted: bool) -> None:
    cache.clear()
    app = {
        "provider_id": "sso",
        "name": "Single sign-on",
        "client_id": "workbench",
        "secret": "s3cret",
        "settings": {
            "server_url": provider,
            "verified_email": trusted,
            "email_authentication": trusted,
            "email_authentication_auto_connect": trusted,
        },
    }
    settings.SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": [app]}}


def sign_in(client: Client, subject: str) -> Any:
    """Walk through the provider as a browser does; the answer of the portal's callback."""
    asked = client.post(REDIRECT, {"provider": "sso", "process": "login", "callback_url": "/"})
    assert asked.status_code == 302, asked.content
    query = parse_qs(urlsplit(asked["Location"]).query)
    assert query["code_challenge_method"] == ["S256"]
    consent = httpx.post(asked["Location"], data={"sub": subject})
    assert consent.status_code in (302, 303), consent.text
    back = urlsplit(consent.headers["location"])
    assert back.path == "/oidc/sso/login/callback/" or "sso" in back.path
    return client.get(f"{back.path}?{back.query}")


@pytest.mark.django_db
def test_somebody_new_gets_an_account_and_comes_back_to_it() -> None:
    first, second = Client(), Client()
    assert sign_in(first, "ada").status_code == 302
    me = first.get("/api/v1/me").json()
    assert me["email"] == "ada@example.org"
    user = User.objects.get(pk=me["id"])
    assert not user.has_usable_password()
    assert (user.is_staff, user.is_superuser) == (False, False)
    sign_in(second, "ada")
    assert second.get("/api/v1/me").json()["id"] == me["id"]


@pytest.mark.django_db
def test_a_site_may_send_strangers_away(settings: Any) -> None:
    settings.WORKBENCH_OIDC_SIGNUP = False
    client = Client()
    sign_in(client, "ada")
    assert client.get("/api/v1/me").status_code == 401
    assert not User.objects.filter(email="ada@example.org").exists()


@pytest.mark.django_db
def test_an_address_alone_opens_nobodys_account() -> None:
    """Whoever runs a provider that is not trusted could say any address."""
    mine = UserFactory(email="ben@example.org")
    client = Client()
    sign_in(client, "ben")
    found = client.get("/api/v1/me")
    assert found.status_code == 401 or found.json()["id"] != str(mine.pk)


@pytest.mark.django_db
@pytest.mark.parametrize("trusted", [True])
def test_addresses_of_a_trusted_provider_are_believed(trusted: bool) -> None:
    mine = UserFactory(email="ben@example.org")
    client = Client()
    sign_in(client, "ben")
    assert client.get("/api/v1/me").json()["id"] == str(mine.pk)


@pytest.mark.django_db
def test_an_answer_nobody_asked_for_opens_nothing(provider: str) -> None:
    """The state of another browser's request, as in a forged login."""
    asked = Client().post(REDIRECT, {"provider": "sso", "process": "login", "callback_url": "/"})
    consent = httpx.post(asked["Location"], data={"sub": "ada"})
    back = urlsplit(consent.headers["location"])
    stranger = Client()
    stranger.get(f"{back.path}?{back.query}")
    assert stranger.get("/api/v1/me").status_code == 401
    assert not User.objects.filter(email="ada@example.org").exists()
