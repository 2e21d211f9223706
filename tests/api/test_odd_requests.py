"""Requests nobody means well: every route of the resolver answers them with something clear, never with a defect.

Each route gets some of the odd values, always the same; with ``WORKBENCH_ODD_REQUESTS=all`` each gets all of them, which
are some twenty thousand requests.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from django.core.cache import cache
from django.urls import URLPattern, URLResolver, get_resolver, resolve, reverse
from rest_framework.test import APIClient

from tests.api.routes import ROUTES, allowed
from tests.api.test_permissions import undone

LONG = "a" * 256  # longer than a file system allows
HUGE = "9" * 400
METHODS = ("get", "post", "put", "patch", "delete", "head", "options", "trace", "brew")


@pytest.fixture(autouse=True)
def _answers_only(monkeypatch):
    """A defect is an answer, too: the test says which request it was."""
    made = APIClient.__init__

    def calm(self, *args, **kwargs):
        made(self, *args, **{**kwargs, "raise_request_exception": False})

    monkeypatch.setattr(APIClient, "__init__", calm)


# --- every path of the site ---------------------------------------------------------------------------------

ODD_PARTS = ("a%00b", LONG, LONG * 20, "%ff%fe", "..%2f..%2fetc", HUGE, "%0d%0aX:1")


def all_paths() -> list[str]:
    """Every path of the resolver, with ``{}`` in the places of its parameters."""

    def walk(patterns: Any, prefix: str) -> Iterator[str]:
        for pattern in patterns:
            path = prefix + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, path)
            elif isinstance(pattern, URLPattern):
                yield path

    found = set()
    for path in walk(get_resolver().url_patterns, ""):
        plain = re.sub(r"\(\?P<[^>]+>[^)]*\)|<[^>]+>", "{}", path)
        found.add("/" + re.sub(r"[\^$]|\\Z|\(\?!.*?\)|\.\*|\\", "", plain))
    return sorted(found)


def some(values: Sequence[Any], number: int, *key: Any) -> Sequence[Any]:
    """So many of the values, chosen by the key: together the keys get all of them."""
    if os.environ.get("WORKBENCH_ODD_REQUESTS") == "all" or number >= len(values):
        return values
    return random.Random(repr(key)).sample(list(values), number)


class Defects:
    """Requests that were answered with a defect, so that one run names all of them."""

    def __init__(self) -> None:
        self.found: set[Any] = set()
        self.tried = 0

    def look(self, answer: Any, *what: Any) -> None:
        """A full disk of the test machine (507) is none."""
        self.tried += 1
        if answer.status_code >= 500 and answer.status_code not in (503, 507):
            self.found.add(what)

    def none_of(self, at_least: int) -> None:
        assert not self.found
        assert self.tried >= at_least


def test_no_path_is_a_defect(world, client_of) -> None:
    """Odd text wherever a path has a place for text, and behind its end."""
    staff, stranger, defects = client_of("staff"), client_of("anonymous"), Defects()
    for path in all_paths():
        for part in some(ODD_PARTS, 1, path):
            targets = {path.replace("{}", part), path.rstrip("/").replace("{}", part) + "/" + part}
            if "{}" in path:
                targets.add(path.replace("{}", str(world.project.pk), 1).replace("{}", part))
            for target in sorted(targets):
                defects.look(staff.get(target), "GET", path, part[:12])
            defects.look(stranger.options(path.replace("{}", part)), "OPTIONS", path, part[:12])
    for part in ODD_PARTS:
        for target in (f"/static/{part}", f"/static/assets/{part}.js", f"/{part}", f"/projects/{part}"):
            defects.look(staff.get(target), "GET", target[:40])
    defects.none_of(400)


# --- every method of every route ----------------------------------------------------------------------------


def url_of(name: str, method: str, world: Any) -> str:
    return reverse(name, kwargs=ROUTES[name, method].kwargs(world))


def test_every_method_of_every_route(world, client_of, client_with) -> None:
    clients = [client_of("staff"), client_of("anonymous"), client_with(world.people["owner"], "read")]
    defects, seen = Defects(), set()
    for name, one in sorted(ROUTES):
        if name in seen:
            continue
        seen.add(name)
        url = url_of(name, one, world)
        for client in clients:
            for method in some(METHODS, 4, name):
                with undone():
                    answer = client.generic(method.upper(), url, "{}", content_type="application/json")
                defects.look(answer, name, method)
        assert clients[0].options(url).status_code in (200, 204, 405)
    defects.none_of(500)


# --- query parameters and cursors ---------------------------------------------------------------------------


def cursor(*parts: Any) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(parts)).decode()


VALUES = (
    *(
        "",
        "\0",
        "a\0b",
        HUGE,
        f"-{HUGE}",
        "1e400",
        "nan",
        "inf",
        "-1",
        "0",
        "²",
        "٣",
        LONG * 8,
        "null",
        b"\xff",
    ),
    *("'", "%", "{}", "9223372036854775808", "1.5", "true", "\U0001f600", b"\xed\xa0\x80", "1e-400", "0x1"),
)
CURSORS = (
    *("AAAA", "====", "é", "kwAA", "3QAA"),
    cursor("index", False, 1.0, 2**63),
    cursor("index", False, float("nan"), -(2**63)),
    cursor("density", True, float("inf"), 5),
    cursor("density", False, float("nan"), 5),
    cursor("density", False, 1e308, 2**63 - 1),
    cursor("index", False, 1.0, 3)[:-3],
    cursor("index", False),
    cursor(),
)
ALWAYS = ("page", "page_size", "cursor", "ordering", "format", "after", "kind")
READS = sorted(name for name, method in ROUTES if method == "get")


def test_no_query_is_a_defect(world, client_of) -> None:
    client, defects = client_of("staff"), Defects()
    for name in READS:
        url, base = url_of(name, "get", world), ROUTES[name, "get"].query(world)
        filters = getattr(getattr(resolve(url).func, "cls", None), "filterset_class", None)
        listing = name.endswith(("-list", "events", "schema"))
        for parameter in (
            *(ALWAYS if listing else ()),
            *(filters.base_filters if listing and filters else ()),
        ):
            for value in some(VALUES, 3, name, parameter):
                defects.look(client.get(url, {**base, parameter: value}), name, parameter, value)
        defects.look(client.get(url, {**base, "format": "\0", "page": HUGE}), name, "format")
    url, base = reverse("feature-list"), {"sae": str(world.sae.pk)}
    for text in CURSORS:
        for ordering in ("index", "density", "-density"):
            query = {**base, "cursor": text, "ordering": ordering}
            defects.look(client.get(url, query), "cursor", text, ordering)
            defects.look(client.get(url, {**query, "search": "a"}), "cursor", text, ordering, "search")
    defects.none_of(500)


# --- bodies -------------------------------------------------------------------------------------------------

BODIES = (
    *(b"", b"null", b"[]", b"[[]]", b"1", b'"x"', b"true", b"{", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"\0"),
    *(b'{"a": NaN}', b'{"a": 1e999}', b'{"\\u0000": 1}', b"[" * 100_000, b'{"a":' * 50_000),
    ('{"a": ' + "9" * 5000 + "}").encode(),
    '{"a": "\U0001f600"}'.encode("utf-16"),
)
TYPES = (
    *(
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
    ),
    *("", "x", "application/json; charset=utf-16", "application/json; charset=none", "a/b;;="),
    "application/offset+octet-stream",
)
JSON = "application/json"
WRITES = sorted((name, method) for name, method in ROUTES if method != "get")


def caller(client_of: Any, how: Any) -> APIClient:
    return client_of("owner" if "owner" in allowed(how.grant) else "staff")


def test_no_body_is_a_defect(world, client_of) -> None:
    defects = Defects()
    for name, method in WRITES:
        how = ROUTES[name, method]
        client, url = caller(client_of, how), url_of(name, method, world)
        odd = (*((body, JSON) for body in BODIES), *((b"{}", kind) for kind in TYPES))
        for body, kind in some(odd, 5, name, method):
            with undone():
                answer = client.generic(method.upper(), url, body, content_type=kind)
            defects.look(answer, name, method, body[:30], kind)
    defects.none_of(300)


ODD: tuple[Any, ...] = (
    *(
        None,
        "",
        "\0",
        "x\0y",
        LONG * 4,
        HUGE,
        -1,
        2**63,
        -(2**63) - 1,
        10**400,
        1.5,
        1e308,
        True,
        [],
        {},
        [[]],
    ),
    *([None], {"a": {"b": []}}, "\ud800", "01900000-0000-7000-8000-000000000000", ["x"] * 3, {"": ""}),
    *("../../etc/passwd", LONG, "/" + LONG, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
)


def fields_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a body."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from fields_of(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from fields_of(inner, (*path, number))


def put(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    if isinstance(body, dict):
        return {**body, path[0]: put(body.get(path[0]), path[1:], value)}
    return [put(inner, path[1:], value) if number == path[0] else inner for number, inner in enumerate(body)]


# Fields that the bodies of the matrix leave out.
MORE: dict[str, dict[str, Any]] = {
    "token-list": {"expires_at": None, "project": None},
    "token-rotate": {"expires_at": None},
    "model-list": {"revision": "", "dtype": "auto"},
    "corpus-list": {"text_field": "text"},
    "recording-list": {"mixture": []},
    "sae-import": {"recording": None, "params": {}},
    "job-clone": {"params": {}, "name": ""},
    "upload-list": {"sha256": ""},
    "patch-list": {"description": "", "enabled": True},
    "patch-export": {"params": {}, "recording": None},
    "inference": {"top": 5, "patches": [], "plan": {"edits": []}},
    "notification-mark-read": {"ids": []},
    "project-list": {"slug": "", "description": ""},
}


def test_no_value_is_a_defect(world, client_of) -> None:
    """Every field of a correct body in turn, with values of every wrong kind."""
    defects = Defects()
    for name, method in WRITES:
        how = ROUTES[name, method]
        client, url = caller(client_of, how), url_of(name, method, world)
        right = {**(how.body(world) if how.body is not None else {}), **MORE.get(name, {})}
        for path in fields_of(right):
            for value in some(ODD, 4, name, method, path):
                body = json.dumps(put(right, path, value)).encode()
                with undone():
                    answer = client.generic(method.upper(), url, body, content_type=JSON)
                defects.look(answer, name, method, path, str(value)[:30])
    defects.none_of(400)


# --- headers, and the doors of signing in -------------------------------------------------------------------

HEADERS: tuple[dict[str, str], ...] = (
    {"Idempotency-Key": "\0"},
    {"Idempotency-Key": "é" * 100},
    {"If-Match": "x" * 300},
    {"Authorization": "Bearer \0"},
    {"Authorization": "Bearer iwb_" + "\0" * 12 + "_x"},
    {"Authorization": "é"},
    {"X-Invitation": "\0"},
    {"X-Invitation": "é.é"},
    {"Accept": "text/html;q=x, */*;;"},
    {"Range": "bytes=" + HUGE + "-" + HUGE},
    {"Cookie": "sessionid=" + LONG * 10},
    {"Cookie": "sessionid=%00; csrftoken=\x01"},
    {"X-Forwarded-For": LONG},
    {"If-None-Match": '"' + LONG, "If-Modified-Since": HUGE},
    {"Upload-Length": HUGE, "Upload-Metadata": "path \0", "Tus-Resumable": "\0"},
)


def test_no_header_is_a_defect(world, client_of) -> None:
    defects, client = Defects(), client_of("owner")
    for name, method in sorted(ROUTES):
        if method in ("get", "post"):
            url = url_of(name, method, world)
            for headers in some(HEADERS, 3, name, method):
                with undone():
                    answer = client.generic(method.upper(), url, "{}", content_type=JSON, headers=headers)
                defects.look(answer, name, method, *headers)
    defects.none_of(200)


def test_signing_in_answers_every_body(world, client_of) -> None:
    fields = ("username", "email", "password", "key", "code", "current_password", "new_password", "provider")
    values = ("\0", "\ud800", "x" * 5000, HUGE, None, [], {}, 10**400, "a@b" + LONG, "\0@example.org")
    odd = [json.dumps(dict.fromkeys(fields, value)).encode() for value in values]
    defects = Defects()
    for client in (APIClient(), client_of("viewer")):
        for path in all_paths():
            if not path.startswith("/_allauth/browser"):
                continue
            for body in some((*BODIES, *odd), 6, path):
                for method in ("POST", "DELETE") if body in BODIES[:4] else ("POST",):
                    cache.clear()
                    with undone():
                        answer = client.generic(method, path.replace("{}", "x"), body, content_type=JSON)
                    defects.look(answer, method, path, body[:60])
    defects.none_of(200)
