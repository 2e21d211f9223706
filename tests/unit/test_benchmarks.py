"""The machinery of the benchmarks: processes, rotation, ratios within rounds, and the page."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from benchmarks import page, report, upload
from benchmarks.contest import Contest, Contestant, Settings, Spread, Standing, run


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(data=tmp_path, rounds=3, threads=1, quick=True, peers=Path(sys.executable))


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
    alone = Settings(data=tmp_path, rounds=1, threads=1, quick=True, peers=tmp_path / "nowhere")
    contest = Contest(
        "t",
        "rows/s",
        "",
        (racer("ours", 5, tmp_path / "log"), racer("peer", 5, tmp_path / "log", role="peer")),
    )
    ours, peer = run(contest, alone)
    assert ours.rates == [5]
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


def test_the_readme_quotes_the_page():
    section = "## A\n\n| | x |\n\n- ours: 2.00 × peer, 0.50 × floor\n\n2026-01-02, CPU, load 0.1 before, full, 3 rounds; torch 2."
    readme = "# R\n\n<!-- quoted from docs/benchmarks.md -->\nold\n<!-- end of quoted -->\nrest\n"
    text = page.quoted(readme, page.merged("", "A", section))
    assert (
        "| A | ours: 2.00 × peer, 0.50 × floor | 2026-01-02, CPU, load 0.1 before, full, 3 rounds |" in text
    )
    assert "old" not in text
    assert text.endswith("<!-- end of quoted -->\nrest\n")
    with pytest.raises(ValueError, match="no lines between"):
        page.quoted("# R\n", "")


def test_a_generated_file_is_the_same_however_it_is_read():
    source = upload.Source(3 * 2**20 + 12345)
    whole = source.read(0, source.size)
    assert len(whole) == source.size
    assert hashlib.sha256(whole).hexdigest() == source.sha256()
    for start, length in ((0, 1), (2**20 - 3, 7), (2**20, 2**21), (source.size - 5, 100)):
        assert source.read(start, length) == whole[start : start + length]
    assert whole[: 2**20] != whole[2**20 : 2**21]
