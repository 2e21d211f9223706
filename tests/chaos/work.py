"""People at work while processes die around them: one submits jobs, one has a live session open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import websockets

from microscope.params import EditPlan, plan_fingerprint
from tests.running import TRAIN, Lab

ACTIVE_JOBS = 3
LONG = TRAIN | {"tokens": 100_000, "checkpoint_seconds": 0.3}
PROMPT = "the state of the union is strong and people ask congress to pass a budget for"


@dataclass
class Notes:
    """What is found on the way. Written by several threads; appending is atomic."""

    complaints: list[str] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)  # moments of live answers
    reconnected: int = 0

    def complain(self, text: str) -> None:
        """Something that must not happen."""
        self.complaints.append(text)
        print(f"  ! {text}", flush=True)


class Submitter:
    """Keeps some jobs going, and now and then cancels one. Sends a request again until it is answered."""

    def __init__(self, lab: Lab, notes: Notes, seed: int) -> None:
        self._lab, self._notes, self._dice = lab, notes, random.Random(seed)
        self._stop = threading.Event()
        self._active: set[str] = set()
        self.submitted: list[str] = []
        self.asked_to_cancel: set[str] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No further jobs; those that run go on."""
        self._stop.set()
        self._thread.join(180)

    def wait_all(self, seconds: float) -> None:
        """Until every job is over."""
        deadline = time.monotonic() + seconds
        while self._active and time.monotonic() < deadline:
            self._look()
            time.sleep(0.5)
        for job in self._active:
            self._notes.complain(f"job {job} is not over after {seconds:g} s")

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look()
            if len(self._active) < ACTIVE_JOBS:
                self._submit()
            elif self._dice.random() < 0.01:
                job = self._dice.choice(sorted(self._active))
                self.asked_to_cancel.add(job)
                # 409: it was over already, or the answer to the first request was lost.
                self._request("POST", f"/jobs/{job}/cancel", expected=(200, 202, 409))
            self._stop.wait(0.2)

    def _submit(self) -> None:
        sae, recording = self._lab.sae["id"], self._lab.recording["id"]
        name, key = f"Under fire {len(self.submitted)}", uuid4().hex
        choice = self._dice.random()
        if choice < 0.4:
            body = {"recording": recording, "name": name, "params": LONG}
            _, answer = self._request("POST", "/saes", body, key, (201, 202))
            jobs = [answer["job"]]
        elif choice < 0.6:
            body = {"recording": recording, "name": name, "train": TRAIN, "evaluate": {}, "analyse": {}}
            _, answer = self._request("POST", "/pipelines", body, key, (201, 202))
            jobs = answer["pipeline"]["jobs"]
        else:
            step = "evaluate" if choice < 0.8 else "analyse"
            _, answer = self._request("POST", f"/saes/{sae}/{step}", {}, key, (201, 202))
            jobs = [answer["job"]]
        self.submitted += [job["id"] for job in jobs]
        self._active |= {job["id"] for job in jobs}

    def _look(self) -> None:
        for job in list(self._active):
            _, answer = self._request("GET", f"/jobs/{job}")
            if answer["job"]["finished_at"]:
                self._active.discard(job)

    def _request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        key: str = "",
        expected: tuple[int, ...] = (200,),
    ) -> tuple[int, Any]:
        """The first answer, however often the connection breaks before it comes."""
        http = self._lab.alice.http
        while True:
            headers = {"Idempotency-Key": key} if key else {}
            try:
                answer = http.request(method, f"/api/v1{path}", json=body, headers=headers, timeout=30)
            except httpx.HTTPError:
                time.sleep(0.2)
                continue
            if answer.status_code in expected:
                return answer.status_code, answer.json()
            if answer.status_code == 429:  # a limit that is meant
                time.sleep(1)
                continue
            self._notes.complain(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
            time.sleep(1)


class LiveSession:
    """Toggles a patch without a pause, as a browser does it: it connects again when the socket ends."""

    def __init__(self, lab: Lab, notes: Notes, index: int) -> None:
        feature = {"sae": lab.sae["fingerprint"], "index": index}
        edit = {"kind": "scale", "site": "resid_post.2", "feature": feature, "strength": 5.0}
        self._plans: list[dict[str, Any]] = [{"edits": []}, {"edits": [edit]}]
        self._prints = [plan_fingerprint(msgspec.convert(plan, type=EditPlan)) for plan in self._plans]
        self._expected: dict[int, dict[int, float]] = {}
        self._lab, self._notes = lab, notes
        self._stop = threading.Event()
        self._rev = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket."""
        self._stop.set()
        self._thread.join(60)

    async def _run(self) -> None:
        cookies = self._lab.alice.cookies
        url, site = self._lab.site.url.replace("http", "ws", 1) + self._lab.live, self._lab.site.url
        while not self._stop.is_set():
            with contextlib.suppress(OSError, TimeoutError, websockets.WebSocketException):
                async with websockets.connect(
                    url, additional_headers={"Cookie": cookies}, origin=site, open_timeout=10
                ) as raw:
                    await self._talk(raw)
            self._notes.reconnected += 1
            await asyncio.sleep(0.25)

    async def _talk(self, raw: Any) -> None:
        """Until the socket ends. The prompt is given once: after a loss the portal opens it again by itself."""
        await self._next(raw, lambda message: message["type"] == "state" and message["state"] == "ready", 600)
        await raw.send(json.dumps({"type": "open", "prompt": PROMPT}))
        while not self._stop.is_set():
            self._rev += 1
            rev, choice = self._rev, self._rev % 2
            await raw.send(json.dumps({"type": "apply", "rev": rev, "plan": self._plans[choice]}))
            with contextlib.suppress(TimeoutError):
                answer = await self._next(
                    raw,
                    lambda m, rev=rev: (
                        m["type"] in ("result", "failure", "superseded") and m.get("rev") in (rev, None)
                    ),
                    2,
                )
                if answer["type"] == "result":
                    self._check(answer, choice)
            await asyncio.sleep(0.1)

    async def _next(self, raw: Any, wanted: Any, seconds: float) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while not self._stop.is_set():
                message: dict[str, Any] = json.loads(await raw.recv())
                if message["type"] == "failure" and message["code"] == "crashed":
                    self._notes.complain(f"live: {message}")
                if wanted(message):
                    return message
        raise TimeoutError

    def _check(self, answer: dict[str, Any], choice: int) -> None:
        self._notes.answered.append(time.monotonic())
        if answer["receipt"]["plan"] != self._prints[choice]:
            self._notes.complain(f"live: the answer to another plan, {answer['receipt']['plan']}")
        shown = {token["token"]: token["patched"] for token in answer["tokens"]}
        known = self._expected.setdefault(choice, shown)
        if any(abs(known.get(token, p) - p) > 1e-5 for token, p in shown.items()):
            self._notes.complain("live: the same plan is answered differently")
