"""One connection to a portal: requests that survive a bad network, and its errors as ours."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from microscope.errors import MicroscopeError

# Answers after which the same request may succeed: too many requests, and a proxy without its server.
_AGAIN = frozenset({429, 502, 503, 504})
LONGEST_WAIT = 30.0

Json = Any


class Connection:
    """Requests below ``/api/v1`` with a bearer token.

    A request is repeated, with growing pauses, when the network fails or the server asks to wait. What
    creates something carries an ``Idempotency-Key``, so that repeating it makes nothing twice.

    Args:
        url: address of the portal.
        token: an API token of its profile page.
        attempts: how often a request is tried in all.
        transport: for tests; by default the network.
    """

    def __init__(
        self, url: str, token: str, *, attempts: int = 5, transport: httpx.BaseTransport | None = None
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise MicroscopeError(
                "bad_url", f"'{url}' is no address of a portal.", "It begins with http:// or https://."
            )
        self.url = url.rstrip("/")
        self._attempts = max(1, attempts)
        self._http = httpx.Client(
            base_url=f"{self.url}/api/v1/",
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            timeout=httpx.Timeout(60.0, connect=10.0),
            transport=transport,
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Json:
        """A JSON answer; query values of None are left out."""
        return self.request("GET", path, params={k: v for k, v in query.items() if v is not None}).json()

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """Send JSON once, however often it has to be repeated."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        answer = self.request("POST", path, json=dict(body or {}), headers=headers)
        return answer.json() if answer.content else None

    def pages(self, path: str, **query: Any) -> Iterator[Json]:
        """Every row of a list, page by page."""
        page = self.get(path, **query)
        while True:
            yield from page["results"]
            if not page.get("next"):
                return
            page = self.request("GET", page["next"]).json()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """An answer below 400.

        Raises:
            MicroscopeError: the portal's own code, sentence and hint; ``unreachable``, or ``server_error``.
        """
        for attempt in range(1, self._attempts + 1):
            last = attempt == self._attempts
            try:
                answer = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if last:
                    raise self.unreachable(error) from error
                time.sleep(min(LONGEST_WAIT, 0.5 * 2**attempt))
                continue
            if answer.status_code in _AGAIN and not last:
                time.sleep(_pause(answer, attempt))
                continue
            if answer.status_code >= 400:
                raise as_error(answer)
            return answer
        raise AssertionError("unreachable")

    def stream(self, path: str, **options: Any) -> Any:
        """A context manager with a streamed answer; nothing is repeated."""
        return self._http.stream("GET", path, **options)

    def unreachable(self, error: Exception) -> MicroscopeError:
        """What a network failure is to the user."""
        return MicroscopeError(
            "unreachable",
            f"{self.url} cannot be reached: {error or type(error).__name__}.",
            "Check the address and the network, and whether the portal runs.",
        )


def as_error(answer: httpx.Response) -> MicroscopeError:
    """The error of an answer of 400 or more."""
    try:
        first = answer.json()["errors"][0]
        detail = first["detail"] if not first.get("attr") else f"{first['attr']}: {first['detail']}"
        return MicroscopeError(first["code"], detail, first.get("hint", ""))
    except (ValueError, KeyError, IndexError, TypeError):
        return MicroscopeError(
            "server_error",
            f"The server answered {answer.status_code} to {answer.request.method} {answer.request.url.path}.",
            "Try again; if it stays, look at the server's log.",
        )


def _pause(answer: httpx.Response, attempt: int) -> float:
    asked = answer.headers.get("Retry-After", "")
    return min(LONGEST_WAIT, float(asked) if asked.isdecimal() else 0.5 * 2**attempt)
