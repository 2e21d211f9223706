"""Work of many turns: a text that is being written, a graph that is being made."""

from __future__ import annotations

from dataclasses import dataclass

from worker.resident.fair_queue import Work


@dataclass
class Running:
    """Work under way, from its queued beginning; ``ended`` says why it is no longer."""

    start: Work
    ended: str = ""

    def over(self) -> bool:
        """Whether no further piece is wanted."""
        return self.ended != ""
