"""Requests on a few lasting threads: they share them, and neither slow readers nor models hold one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from types import ModuleType
from uuid import uuid4

import pytest
from asgiref.testing import ApplicationCommunicator
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path, reverse

from workbench.http import WAITING, Handler

urls = ModuleType("urls_of_test_http")
slow = threading.Event()


def name(request) -> HttpResponse:
    return HttpResponse(threading.current_thread().name)


def waits(request) -> HttpResponse:
    assert slow.wait(20)
    return name(request)


def fails(request) -> HttpResponse:
    raise ValueError("on purpose")


def streams(request) -> StreamingHttpResponse:
    async def pieces() -> AsyncIterator[bytes]:
        yield threading.current_thread().name.encode()
        while not slow.is_set():
            await asyncio.sleep(0.01)
        yield b" later"

    return StreamingHttpResponse(pieces())


urls.urlpatterns = [  # type: ignore[attr-defined]
    path("name", name),
    path("waits", waits),
    path("fails", fails),
    path("streams", streams),
    path("api/v1/inference", waits),
]


@pytest.fixture
def handler(settings) -> Handler:
    settings.ROOT_URLCONF = urls
    slow.clear()
    return Handler(threads=1)


class Call:
    """One request."""

    def __init__(self, handler: Handler, where: str) -> None:
        scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": where, "query_string": b""}
        scope |= {"headers": [(b"host", b"localhost")], "server": ("localhost", 80), "root_path": ""}
        self.channel = ApplicationCommunicator(handler, scope)

    async def start(self) -> Call:
        await self.channel.send_input({"type": "http.request", "body": b""})
        return self

    async def status(self) -> int:
        return (await self.channel.receive_output(20))["status"]

    async def piece(self) -> str:
        return (await self.channel.receive_output(20))["body"].decode()

    async def whole(self) -> tuple[int, str]:
        answer = await self.status(), await self.piece()
        await self.channel.wait(20)
        return answer


async def call(handler: Handler, where: str) -> Call:
    return await Call(handler, where).start()


async def test_requests_use_the_same_thread_again(handler) -> None:
    answers = [await (await call(handler, "/name")).whole() for _ in range(5)]
    assert {status for status, _ in answers} == {200}
    assert len({thread for _, thread in answers}) == 1
    assert answers[0][1].startswith("http-0")


async def test_a_failure_frees_its_thread(handler, settings) -> None:
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    for _ in range(3):
        assert (await (await call(handler, "/fails")).whole())[0] == 500
    assert (await (await call(handler, "/name")).whole())[0] == 200


async def test_who_has_gone_frees_the_thread_too(handler) -> None:
    gone = await call(handler, "/waits")
    await gone.channel.send_input({"type": "http.disconnect"})
    later = await call(handler, "/name")
    await asyncio.sleep(0.1)
    slow.set()
    assert (await later.whole())[0] == 200


async def test_a_slow_reader_holds_no_thread(handler) -> None:
    reader = await call(handler, "/streams")
    assert await reader.status() == 200
    assert await reader.piece() != ""
    assert (await (await call(handler, "/name")).whole())[0] == 200  # the only thread
    slow.set()
    assert await reader.piece() == " later"
    await reader.channel.wait(20)


async def test_when_all_threads_wait_for_something_others_get_their_own(handler, monkeypatch) -> None:
    monkeypatch.setattr("workbench.http.WAIT_SECONDS", 0.1)
    waiting = await call(handler, "/waits")
    status, thread = await (await call(handler, "/name")).whole()
    assert status == 200
    assert not thread.startswith("http-")
    slow.set()
    assert (await waiting.whole())[1].startswith("http-0")
    assert (await (await call(handler, "/name")).whole())[1].startswith("http-0")


async def test_requests_that_wait_for_a_model_leave_the_thread_to_others(handler) -> None:
    waiting = [await call(handler, "/api/v1/inference") for _ in range(3)]
    status, thread = await (await call(handler, "/name")).whole()
    assert (status, thread[:6]) == (200, "http-0")
    slow.set()
    answers = [await one.whole() for one in waiting]
    assert len({thread for _, thread in answers}) == 3


def test_the_addresses_that_wait_for_a_model_are_those_of_the_api() -> None:
    for where in (reverse("inference"), reverse("sae-attach", args=[uuid4()])):
        assert WAITING.fullmatch(where)
