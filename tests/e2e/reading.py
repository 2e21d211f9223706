"""What the lab shows, read from the page."""

from __future__ import annotations

from playwright.sync_api import Page

PROMPT = "the state of the union is strong and people ask congress to pass a budget for"
JOB = 900_000  # milliseconds a job of the tiny model may take on a busy machine


def wait_for_bars(page: Page, moved: bool) -> dict[str, tuple[float, float]]:
    """Next tokens with their probabilities, base and patched, once they differ or once all are equal.

    Read in the same moment as they are waited for: the next answer may already be on its way.
    """
    rows: list[dict[str, str]] = page.wait_for_function(
        """moved => {
            const rows = [...document.querySelectorAll('[data-testid=prob-row]')].map(row => ({...row.dataset}));
            const busy = document.querySelector('[data-testid=answer]')?.getAttribute('aria-busy') === 'true';
            const shown = !busy && rows.length > 0 && rows.some(row => row.base !== row.patched) === moved;
            return shown ? rows : null;
        }""",
        arg=moved,
    ).json_value()
    return {row["token"]: (float(row["base"]), float(row["patched"])) for row in rows}
