"""A person at the portal: signs in and uses REST and WebSockets as a browser does."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import websockets


class PortalError(Exception):
    """The portal refused something; says what and why."""


class Portal:
    """One signed-in session.

    Args:
        url: where the portal is.
        username: who signs in.
        password: with what.

    Attributes:
        http: sends the session's cookies and the CSRF token with every request.
    """

    def __init__(self, url: str, username: str, password: str) -> None:
        self.url = url
        self.http = httpx.Client(
            base_url=url,
            timeout=60,
            headers={"Origin": url, "Referer": url + "/"},
            event_hooks={"request": [self._add_csrf_token]},
        )
        self.http.get("/login")  # sets the CSRF cookie
        self.request(
            "POST", "/_allauth/browser/v1/auth/login", json={"username": username, "password": password}
        )

    def get(self, path: str, **params: Any) -> Any:
        """GET below /api/v1."""
        return self.request("GET", f"/api/v1{path}", params=params)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST below /api/v1."""
        return self.request("POST", f"/api/v1{path}", json=body or {})

    def find(self, path: str, name: str, **params: Any) -> dict[str, Any] | None:
        """The object of that name in a list, or None."""
        return next((item for item in self.each(path, **params) if item["name"] == name), None)

    def each(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """All objects of a paged list."""
        page = self.get(path, **params)
        while True:
            yield from page["results"]
            if not page["next"]:
                return
            page = self.request("GET", page["next"])

    def wait(self, job: str, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Follow a job to its end.

        Raises:
            PortalError: it did not succeed.
        """
        while True:
            found: dict[str, Any] = self.get(f"/jobs/{job}")["job"]
            show(found)
            if found["state"] == "succeeded":
                return found
            if found["state"] in ("failed", "cancelled"):
                error = found.get("error") or {}
                raise PortalError(
                    f"{found['title']} {found['state']}: {error.get('message', '')} {error.get('hint', '')}"
                )
            time.sleep(0.5)

    @property
    def cookies(self) -> str:
        """The session as the value of a Cookie header."""
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.http.cookies.jar)

    @asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[Socket]:
        """A WebSocket with this session's cookies."""
        address = self.url.replace("http", "ws", 1) + path
        options: dict[str, Any] = {
            "additional_headers": {"Cookie": self.cookies},
            "origin": self.url,
            "max_size": None,
        }
        async with websockets.connect(address, **options) as raw:
            yield Socket(raw)

    def request(self, method: str, path: str, **options: Any) -> Any:
        """The answer as data, None if it is empty.

        Raises:
            PortalError: the portal refused.
        """
        answer = self.http.request(method, path, **options)
        if answer.is_error:
            raise PortalError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content else None

    def _add_csrf_token(self, request: httpx.Request) -> None:
        request.headers["X-CSRFToken"] = self.http.cookies.get("csrftoken") or ""


class Socket:
    """Messages as dictionaries; ``raw`` sends and receives text."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    async def send(self, type: str, **fields: Any) -> None:
        """Send one message."""
        await self.raw.send(json.dumps({"type": type, **fields}))

    async def expect(self, type: str) -> dict[str, Any]:
        """The next message of a type; others are passed over.

        Raises:
            PortalError: the portal answered with a failure.
        """
        while True:
            message: dict[str, Any] = json.loads(await self.raw.recv())
            if message["type"] == type:
                return message
            if message["type"] == "failure":
                raise PortalError(f"{message['code']}: {message['message']} {message['hint']}")
