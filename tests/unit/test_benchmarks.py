"""The machinery of the benchmarks: processes, rotation, ratios within rounds, and the page."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from random import Random
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import httpx
import pytest

from benchmarks import chart, page, portal, portal_people, report, upload
from benchmarks.contest import Contest, Contestant, Settings, Spread, Standing, run


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(data=tmp_path, rounds=3, threads=1, quick=True, pythons={"peers": Path(sys.executable)})


def racer(name: str, rate: float, log: Path, **more: object) -> Contestant:
    options = {"name": name, "rate": rate, "log": str(log)}
    return Contestant(name, "tests.unit.racers:steady", options, **more)  # type: ignore[arg-type]


def test_rounds_are_interleaved_and_rotate(settings, tmp_path):
    log = tmp_path / "log"
    contest = Contest("t", "rows/s", "", tuple(racer(name, 10, log) for name in "abc"))
    standings = run(contest, settings)
    assert log.read_text() == "abc" + "abc" + "bca" + "cab"  # the first warms up
    assert [s.rates for s in standings] == [[10, 10, 10]] * 3
    log.unlink()
    assert [s.rates for s in run(Contest("t", "rows/s", "", contest.contestants, once=True), settings)] == [
        [10]
    ] * 3
    assert log.read_text() == "abc"


def test_who_is_missing_or_breaks_does_not_stop_the_others(settings, tmp_path):
    log = tmp_path / "log"
    contest = Contest(
        "t",
        "rows/s",
        "",
        (
            racer("ours", 20, log, compared=True),
            Contestant("absent", "tests.unit.racers:elsewhere", role="peer"),
            Contestant("crashing", "tests.unit.racers:crashing", {"after": 2}),
            racer("peer", 10, log, role="peer"),
        ),
    )
    ours, absent, crashing, peer = run(contest, settings)
    assert absent.missing == "not installed (no_such_library)"
    assert crashing.missing == "failed: out of luck"
    assert crashing.rates == [1.0]
    assert ours.ratio(peer) == Spread(2.0, 0.0)
    text = report.section(contest, [ours, absent, crashing, peer], settings)
    assert "| peer | 10 | 0.00 | 2.00 (0.00) | 7 |" in text
    assert "| absent | not installed (no_such_library) |" in text
    assert "- ours: 2.00 × peer" in text


def test_without_the_peers_environment_the_rest_is_measured(settings, tmp_path):
    pythons = {"peers": tmp_path / "nowhere", "other": Path(sys.executable)}
    alone = Settings(data=tmp_path, rounds=1, threads=1, quick=True, pythons=pythons)
    contest = Contest(
        "t",
        "rows/s",
        "",
        (
            racer("ours", 5, tmp_path / "log"),
            racer("peer", 5, tmp_path / "log", role="peer"),
            racer("elsewhere", 5, tmp_path / "log", role="peer", environment="other"),
        ),
    )
    ours, peer, elsewhere = run(contest, alone)
    assert ours.rates == elsewhere.rates == [5]
    assert (peer.rates, peer.missing) == ([], "not installed")


def test_ratios_are_taken_within_rounds():
    """A machine that halves its speed changes both alike: the ratio stays, and so does its spread of zero."""
    mine, theirs = (Standing(Contestant(n, ""), rates=r) for n, r in (("a", [8, 4, 2]), ("b", [4, 2, 1])))
    assert mine.ratio(theirs) == Spread(2.0, 0.0)
    assert Spread.of([8, 4, 2]) == Spread(4, 1.5)


def test_what_is_written_by_hand_stays_on_the_page():
    """Measuring a section anew changes that section, whatever stands before, between and after."""
    start = page.merged(page.merged("", "A", "## A\n\nfirst"), "B", "## B\n\nsecond")
    start = start.replace("section by section.", "with care.").replace(
        "\n<!-- measured: B", "\nBy hand.\n\n<!-- measured: B"
    )
    start += "\n## Notes\n\nfirst of all, by hand too\n"
    again = page.merged(start, "A", "## A\n\nthird\n\n## within")
    assert again == start.replace("## A\n\nfirst", "## A\n\nthird\n\n## within")
    assert page.merged(again, "A", "## A\n\nfirst") == start
    more = page.merged(start, "C", "## C\n\nnew")
    assert more.index("second") < more.index("new") < more.index("## Notes")


def test_the_chart_has_a_bar_for_each_of_ours_and_its_fastest_peer():
    section = (
        "## A\n\n| | x |\n| *floor* | 9 |\n\n- ours: 2.00 × peer, 0.50 × floor\n- slow: 0.80 × peer\n"
        "- alone: 0.50 × floor\n- plain forward: 1.50 × peer\n\n"
        "2026-01-02, CPU, 2 cores, Python 3.11, load 0.1 before, full, 3 rounds; torch 2."
    )
    text = page.merged(page.merged("", "A & B", section), "C", "## C\n\n- goal met: memory 3 (≤ 4)")
    assert [row[:4] for row in chart.ratios(text)] == [
        ("A & B", "ours", 2.0, "peer"),
        ("A & B", "slow", 0.8, "peer"),
    ]
    drawing = ElementTree.fromstring(chart.drawn(text))
    texts = [one.text for one in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"A & B", "ours", "2.00 × peer", "0.80 × peer", "Measured 2026-01-02, CPU, 2 cores."} <= set(texts)
    bars = {one.get("class"): one for one in drawing.iter("{http://www.w3.org/2000/svg}rect")}
    assert {"faster", "slower"} <= bars.keys()
    assert float(bars["slower"].get("x")) < float(bars["faster"].get("x"))
    with pytest.raises(ValueError, match="compares nothing"):
        chart.drawn(page.merged("", "C", "## C\n"))


def test_a_generated_file_is_the_same_however_it_is_read():
    source = upload.Source(3 * 2**20 + 12345)
    whole = source.read(0, source.size)
    assert len(whole) == source.size
    assert hashlib.sha256(whole).hexdigest() == source.sha256()
    for start, length in ((0, 1), (2**20 - 3, 7), (2**20, 2**21), (source.size - 5, 100)):
        assert source.read(start, length) == whole[start : start + length]
    assert whole[: 2**20] != whole[2**20 : 2**21]


def reader(
    answers: dict[str, httpx.Response], log: portal_people.Log
) -> tuple[portal_people.Reader, list[str]]:
    """Somebody who browses a portal that knows these addresses, and what they asked for."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return answers.get(request.url.path, httpx.Response(404, text="nothing there"))

    lab = portal_people.Lab(project="p", sae="s", saes=["s"], jobs=["j"], patches=["q"], words=["w"])
    scripts, network = portal_people.Scripts({}), httpx.MockTransport(answer)
    return portal_people.Reader(
        "http://portal", "key", lab, scripts, log, Random(0), transport=network
    ), asked


async def test_readers_ask_again_only_for_what_is_old_or_failed():
    log = portal_people.Log()
    query, old = portal_people.Query("/me", 60.0), portal_people.Query("/notifications", 0.0)
    known = {f"/api/v1{path}": httpx.Response(200, content=b"{}") for path in ("/me", "/notifications")}
    person, asked = reader(known, log)
    for _ in range(2):
        await person.ask(query, old)
        await person.ask(portal_people.Query("/gone", 60.0))
    assert sorted(asked) == ["/api/v1/gone"] * 2 + ["/api/v1/me"] + ["/api/v1/notifications"] * 2
    assert log.errors == ["GET /gone: 404 nothing there"] * 2
    assert {name: len(times) for name, times in log.requests.items()} == {
        "GET /gone": 2,
        "GET /me": 1,
        "GET /notifications": 2,
    }
    await person.close()


def test_pages_that_began_while_readers_came_in_do_not_count():
    log = portal_people.Log(begin=time.perf_counter())
    log.page("before", log.begin - 0.1)
    log.page("after", log.begin)
    assert list(log.pages) == ["after"]


def test_a_page_brings_its_scripts_and_their_styles(tmp_path):
    assets = tmp_path / "assets"
    assets.mkdir()
    for name, text in {
        "Home-abcdefgh.js": 'import{a as b}from"./Box-12345678.js";import"./side-abcd-fgh.js";',
        "Home-bcdefghi.css": "",
        "Box-12345678.js": 'import{c}from"./Home-abcdefgh.js"',
        "Box-23456789.css": "",
        "side-abcd-fgh.js": "",
        "Other-abcdefgh.js": "",
        "Other-abcdefgh.css": "",
    }.items():
        (assets / name).write_text(text)
    found = {Path(file).name for file in portal_people.Scripts.of(tmp_path).needs["Home"]}
    assert found == {path.name for path in assets.iterdir() if not path.name.startswith("Other")}
    assert portal_people.Scripts.of(tmp_path / "nowhere").needs == {}


def test_requests_are_counted_by_what_they_ask_for():
    job = "0190f2b4-7c3a-7b1e-9f00-000000000001"
    assert portal_people.shape(f"/api/v1/jobs/{job}/events?after=3") == "/jobs/{id}/events"
    assert portal_people.shape("/static/assets/index-BdH8O8Z1.js") == "/static/…"
    query = parse_qs(urlsplit(portal_people.filtered("s", Random(1))).query)
    assert 0 < float(query["min_density"][0]) < float(query["max_density"][0])
    assert query["dead"] == ["false"]


def test_the_load_test_judges_all_pages_together():
    run = portal.Run()
    run.web = portal.Web(starts=[1.0, 2.0, 9.0], before=100, after=140)
    run.together.pages = {"home": [100.0] * 90, "jobs": [290.0] * 9 + [900.0]}
    run.alone.pages = {"feature": [120.0]}
    lines = list(portal.goals(run))
    assert "- goal met: 50 people browsing, page p95 in ms 290 (≤ 300)" in lines
    assert "- goal met: errors 0 (≤ 0)" in lines
    assert "- goal **missed**: alone, feature, p95 in ms 120 (≤ 100)" in lines
    assert "- goal met: web process, median start in s 2 (≤ 3)" in lines
    assert "- goal met: web process, MB 140 (≤ 150)" in lines
    run.together.errors += ["GET /me: 500"] * 3
    run.web.torch.append("libtorch.so")
    run.late.append(1.0)
    lines = list(portal.goals(run))
    assert "- goal **missed**: errors 3 (≤ 0)" in lines
    assert "- goal **missed**: web process, files of torch loaded 1 (≤ 0)" in lines
    assert "- 3 × GET /me: 500" in list(portal.text(run))
    assert list(portal.table(run.together.pages, "pages"))[2:] == [
        "| home | 90 | 100 | 100 | 100 | 100 |",
        "| jobs | 10 | 290 | 900 | 900 | 900 |",
        "| all pages | 100 | 100 | 290 | 900 | 900 |",
    ]
