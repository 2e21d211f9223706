"""People who browse: what the browser application asks for on its pages, and when it asks again.

A page is over when everything it asks for is there, requests that need the answer of another included. As in the
application an answer is kept and asked for again only when it is older than the query allows (``staleTime``); scripts
and styles are loaded when they are first needed and never again. A reader looks at every page for a few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import websockets

# Seconds a reader looks at a page.
THINK = (2.0, 8.0)
API = "/api/v1"
_PAGE_SIZE = 200  # rows the feature table asks for at once
_CONNECTIONS = 6  # of a browser to one host
_FRESH, _MINUTE, _FOREVER = 5.0, 60.0, float("inf")
_ENTRY = re.compile(r'(?:src|href)="(/static/[^"]+)"')
_IMPORTED = re.compile(r'(?:from|import)"\./([\w.-]+\.js)"')
_HASH = re.compile(r"-[\w-]{8}\.(?:js|css)$")


class Query(NamedTuple):
    """Something a page asks for, and for how many seconds its answer is good."""

    path: str
    fresh: float = _FRESH


@dataclass(frozen=True)
class Lab:
    """What the readers browse: made by :mod:`benchmarks.portal_rows`.

    ``cursors`` are starts of pages all over the feature list, by its query without the cursor.
    """

    project: str
    sae: str
    saes: list[str]
    jobs: list[str]
    patches: list[str]
    words: list[str]
    cursors: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Log:
    """Milliseconds of pages and of single requests, from ``begin`` on; errors of all the time."""

    begin: float = 0.0
    pages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    requests: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)

    def page(self, name: str, started: float) -> None:
        """A page that was begun at ``started`` is there."""
        if started >= self.begin:
            self.pages[name].append(1000 * (time.perf_counter() - started))

    def request(self, method: str, path: str, started: float) -> None:
        """So is an answer."""
        if started >= self.begin:
            self.requests[f"{method} {shape(path)}"].append(1000 * (time.perf_counter() - started))


def shape(path: str) -> str:
    """The address without what tells one object from another."""
    bare = urlsplit(path).path.removeprefix(API)
    if bare.startswith("/static/"):
        return "/static/…"
    return re.sub(r"/[0-9a-f-]{36}", "/{id}", bare)


@dataclass(frozen=True)
class Scripts:
    """Files of the built application: what each page's script needs besides itself."""

    needs: dict[str, list[str]]

    @classmethod
    def of(cls, dist: Path) -> Scripts:
        """Read them; without a build there are none."""
        files = {path.name: path for path in sorted((dist / "assets").glob("*"))}
        direct = {
            name: _IMPORTED.findall(path.read_text()) for name, path in files.items() if path.suffix == ".js"
        }
        needs: dict[str, list[str]] = {}
        for name in direct:
            found: list[str] = []
            wanted = [name]
            while wanted:
                next_one = wanted.pop()
                if next_one in files and next_one not in found:
                    found.append(next_one)
                    wanted += direct.get(next_one, [])
            stems = {_HASH.sub("", one) for one in found}
            found += [one for one in files if one.endswith(".css") and _HASH.sub("", one) in stems]
            needs.setdefault(_HASH.sub("", name), [f"/static/assets/{one}" for one in found])
        return cls(needs)


def listed(sae: str, ordering: str = "-max_activation", **filters: Any) -> str:
    """The feature list as its page asks for it; dead features are left out unless they are wanted."""
    query = {"sae": sae, "ordering": ordering, "dead": "false", **filters, "page_size": _PAGE_SIZE}
    return f"/features?{urlencode(query)}"


def filtered(sae: str, random: Random) -> str:
    """The list sorted somehow, and only densities in a range."""
    least = 10 ** random.uniform(-6, -2)
    ordering = random.choice(("-density", "density", "-max_activation", "-p999", "index"))
    return listed(sae, ordering, min_density=f"{least:.6g}", max_density=f"{30 * least:.6g}")


class Reader:
    """One signed-in person with a browser.

    Args:
        url: of the portal.
        session: key of their session.
        lab: what there is.
        scripts: of the application; none for somebody whose browser has them from before.
        log: where times go.
        random: their choices.
        transport: by default the network.
    """

    def __init__(
        self,
        url: str,
        session: str,
        lab: Lab,
        scripts: Scripts,
        log: Log,
        random: Random,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.lab, self.scripts, self.log, self.random = lab, scripts, log, random
        self._url, self._session = url, session
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Origin": url, "Referer": url + "/"},
            cookies={"sessionid": session},
            limits=httpx.Limits(max_connections=_CONNECTIONS),
            timeout=60,
            transport=transport,
        )
        self._answers: dict[str, tuple[float, bytes]] = {}
        self._files: set[str] = set()
        self._socket: Any = None
        self._told: dict[str, asyncio.Event] = {}
        self._feature: dict[str, Any] = {}  # the one to look at next
        self._shown: dict[str, Any] = {}

    # --- the browser ----------------------------------------------------------------------------------

    async def send(self, method: str, path: str, **options: Any) -> bytes:
        """One request; anything but success is an error."""
        started = time.perf_counter()
        try:
            answer = await self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            self.log.errors.append(f"{method} {shape(path)}: {type(error).__name__} {error}")
            return b""
        self.log.request(method, path, started)
        if not (answer.is_success or answer.status_code == 304):
            self.log.errors.append(f"{method} {shape(path)}: {answer.status_code} {answer.text[:200]}")
            return b""
        return answer.content

    async def ask(self, *queries: Query) -> list[Any]:
        """The answers, of which those that are missing or too old are asked for at once."""

        async def one(query: Query) -> Any:
            known = self._answers.get(query.path)
            if known is None or time.monotonic() - known[0] > query.fresh:
                content = await self.send("GET", API + query.path)
                known = (time.monotonic(), content)
                if content:
                    self._answers[query.path] = known
            return known[1]

        return await asyncio.gather(*(one(query) for query in queries))

    async def load(self, *pages: str) -> None:
        """Scripts and styles of pages, unless they are there."""
        wanted = {file for page in pages for file in self.scripts.needs.get(page, [])} - self._files
        self._files |= wanted
        await asyncio.gather(*(self.send("GET", file) for file in sorted(wanted)))

    @contextlib.asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """With the socket that keeps a browser's jobs up to date; that it is lost is an error."""
        address = self._url.replace("http", "ws", 1) + "/ws/jobs/"
        headers = {"Cookie": f"sessionid={self._session}"}
        async with websockets.connect(
            address, additional_headers=headers, origin=self._url, max_size=None
        ) as socket:
            self._socket = socket
            await self._say("subscribe", project=self.lab.project)
            reading = asyncio.create_task(self._read())
            try:
                yield
            finally:
                reading.cancel()

    async def _read(self) -> None:
        try:
            async for text in self._socket:
                message = json.loads(text)
                if message["type"] == "events" and message["job"] in self._told:
                    self._told[message["job"]].set()
                elif message["type"] == "failure":
                    self.log.errors.append(f"jobs socket: {message['code']} {message['message']}")
            self.log.errors.append(f"jobs socket closed with {self._socket.close_code}")
        except websockets.ConnectionClosed as closed:
            self.log.errors.append(f"jobs socket lost: {closed}")

    async def _say(self, type: str, **fields: Any) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):  # the one who reads has noted it
            await self._socket.send(json.dumps({"type": type, **fields}))

    # --- pages: the queries of frontend/src/pages, by the component that asks ---------------------------

    async def open(self) -> None:
        """The application in a new tab: document, scripts, who one is, the projects."""
        self._answers.clear()
        document = (await self.send("GET", "/")).decode()
        entry = set(_ENTRY.findall(document) if self.scripts.needs else ()) - self._files
        self._files |= entry
        await asyncio.gather(*(self.send("GET", file) for file in sorted(entry)))
        await self.ask(Query("/me", 5 * _MINUTE))
        await self.load("Projects")
        await self.ask(Query("/projects"), _UNREAD)

    async def home(self) -> None:
        """The project, with its picture and what it uses of its limits."""
        await self.load("ProjectFrame", "Home")
        project = f"/projects/{self.lab.project}"
        await self.ask(Query(project, _MINUTE))
        await self.ask(self._jobs, Query(f"{project}/lineage"), Query(f"{project}/usage"), _UNREAD)

    async def recordings(self) -> None:
        """Recordings and corpora."""
        await self.load("Recordings")
        await self.ask(self._of("recordings"), self._of("corpora"), self._jobs, _UNREAD)

    async def saes(self) -> None:
        """SAEs."""
        await self.load("Saes")
        await self.ask(self._of("saes"), self._jobs, _UNREAD)

    async def sae(self) -> None:
        """One SAE: report, files, curves of its training."""
        await self.load("SaePage")
        [answer] = await self.ask(Query(f"/saes/{self.random.choice(self.lab.saes)}"))
        if not answer:
            return
        sae = json.loads(answer)
        artifacts = {sae["artifact"], sae["evaluation"]["artifact"]}
        job = sae["job"]
        await asyncio.gather(
            self.ask(
                self._jobs,
                Query(f"/jobs/{job}"),
                *(Query(f"/artifacts/{one}", _FOREVER) for one in sorted(artifacts)),
                _UNREAD,
            ),
            self._history(job),
        )

    async def features(self) -> None:
        """The feature table as it opens."""
        await self.load("Features")
        await self._listed(listed(self.lab.sae))

    async def scrolled(self) -> None:
        """The table anywhere in its length, and the page after that one."""
        path = self.random.choice(sorted(self.lab.cursors))
        first = f"{path}&cursor={self.random.choice(self.lab.cursors[path])}"
        following = parse_qs(urlsplit(await self._listed(first)).query).get("cursor")
        if following:
            await self.ask(Query(f"{path}&{urlencode({'cursor': following[0]})}"))

    async def filtered(self) -> None:
        """Sorted otherwise, and only densities in a range."""
        await self._listed(filtered(self.lab.sae, self.random))

    async def starred(self) -> None:
        """What people have starred."""
        await self._listed(listed(self.lab.sae, starred="true"))

    async def searched(self) -> None:
        """A word looked for in labels and tokens."""
        await self._listed(listed(self.lab.sae, search=self.random.choice(self.lab.words).strip()))

    async def feature(self) -> None:
        """One feature of the list, with the way to the ones before and after it."""
        await self.load("FeaturePage")
        if not self._feature:
            await self._listed(listed(self.lab.sae))
        if not self._feature:
            return
        [answer] = await self.ask(Query(f"/features/{self._feature['id']}", _MINUTE))
        if not answer:
            return
        self._shown = json.loads(answer)["feature"]
        around = (self._shown["index"] - 1, self._shown["index"] + 1)
        near = [
            Query(f"/features?{urlencode({'sae': self.lab.sae, 'index': index, 'page_size': 1})}", _MINUTE)
            for index in around
            if index >= 0
        ]
        answers = await self.ask(*near, _UNREAD)
        rows = json.loads(answers[-2])["results"] if answers[-2] else []
        self._feature = rows[0] if rows else {}

    async def star(self) -> None:
        """A star for the feature that is shown, or its removal: the only thing readers change."""
        shown, self._shown = self._shown, {}
        if shown:
            path = f"/features/{shown['id']}"
            headers = {"If-Match": shown["etag"], "X-CSRFToken": self._http.cookies.get("csrftoken") or ""}
            await self.send("PATCH", API + path, json={"starred": not shown["starred"]}, headers=headers)
            self._answers.pop(path, None)

    async def jobs(self) -> None:
        """Jobs of the project."""
        await self.load("Jobs")
        await self.ask(self._jobs, _UNREAD)

    async def job(self) -> None:
        """One job: state, curves, log."""
        await self.load("JobPage")
        job = self.random.choice(self.lab.jobs)
        await asyncio.gather(
            self.ask(Query(f"/jobs/{job}"), Query(f"/projects/{self.lab.project}", _MINUTE), _UNREAD),
            self._history(job),
        )

    async def patches(self) -> None:
        """Patches, and what became of one of them."""
        await self.load("Patches")
        await self.ask(self._of("patches"), self._jobs, _UNREAD)
        await self.ask(Query(f"/patches/{self.random.choice(self.lab.patches)}/versions"))

    async def bell(self) -> None:
        """The newest notifications."""
        await self.ask(Query("/notifications?page_size=20", 0.0), _UNREAD)

    @property
    def _jobs(self) -> Query:
        return self._of("jobs")

    def _of(self, kind: str) -> Query:
        return Query(f"/{kind}?project={self.lab.project}")

    async def _listed(self, path: str) -> str:
        """A page of the table; a feature of it is looked at next. Returns the address of the page after it."""
        answers = await self.ask(Query(f"/saes/{self.lab.sae}"), Query(path), _UNREAD)
        if not answers[1]:
            return ""
        page = json.loads(answers[1])
        if page["results"]:
            self._feature = self.random.choice(page["results"])
        return str(page["next"] or "")

    async def _history(self, job: str) -> None:
        """A job's log and curves, over the socket."""
        if self._socket is None:
            return
        told = self._told[job] = asyncio.Event()
        await self._say("watch", job=job, after=0)
        try:
            await asyncio.wait_for(told.wait(), 60)
        except TimeoutError:
            self.log.errors.append("jobs socket: no history of a job within 60 s")
        del self._told[job]
        await self._say("unwatch", job=job)

    # --- browsing -------------------------------------------------------------------------------------

    def way(self) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        """Pages in the order people visit them, by name; the end leads to the beginning."""
        yield from (
            ("opening the application", self.open),
            ("project home", self.home),
            ("recordings", self.recordings),
            ("SAEs", self.saes),
            ("SAE", self.sae),
            ("features", self.features),
            ("features, scrolled", self.scrolled),
            ("features, sorted and filtered", self.filtered),
            ("feature", self.feature),
            ("feature, the next one", self.feature),
            ("feature, starred", self.star),
            ("features, searched", self.searched),
            ("feature", self.feature),
            ("features, starred ones", self.starred),
            ("jobs", self.jobs),
            ("job", self.job),
            ("patches", self.patches),
            ("notifications", self.bell),
        )

    async def browse(self, until: float) -> None:
        """Come in, go on from anywhere, and read until that time (``perf_counter``)."""
        await asyncio.sleep(self.random.uniform(0, 2 * THINK[1]))
        way = list(self.way())
        place = self.random.randrange(2, len(way))
        order = [0, 1, *range(place, len(way))]
        try:
            async with self.followed():
                while True:
                    for number in order:
                        if time.perf_counter() > until:
                            return
                        name, visit = way[number]
                        started = time.perf_counter()
                        await visit()
                        self.log.page(name, started)
                        await asyncio.sleep(self.random.uniform(*THINK))
                    order = list(range(len(way)))
        except (OSError, websockets.WebSocketException) as error:
            self.log.errors.append(f"jobs socket: {type(error).__name__} {error}")

    async def close(self) -> None:
        """End all connections."""
        await self._http.aclose()


_UNREAD = Query("/notifications/unread", 30.0)
