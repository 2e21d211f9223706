"""Live re-inference of prompts under edits."""

from microscope.live.distribution import Comparison, Shift, compare
from microscope.live.generate import Continuation, Generation, Piece, Step
from microscope.live.replay import Replayed, replay
from microscope.live.resident import Applied, PromptView, ResidentModel
from microscope.live.run import PromptRun, run_baseline, unpatched
from microscope.live.sessions import Outcome

__all__ = [
    "Applied",
    "Comparison",
    "Continuation",
    "Generation",
    "Outcome",
    "Piece",
    "PromptRun",
    "PromptView",
    "Replayed",
    "ResidentModel",
    "Shift",
    "Step",
    "compare",
    "replay",
    "run_baseline",
    "unpatched",
]
