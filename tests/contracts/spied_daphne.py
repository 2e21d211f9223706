"""Daphne as it is started in earnest, except that SIGUSR1 makes it write down which modules it has loaded."""

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from workbench.web import main

TARGET = Path(os.environ["MODULES_FILE"])


def write_modules(_signal: int, _frame: FrameType | None) -> None:
    draft = TARGET.with_suffix(".tmp")
    draft.write_text(json.dumps(sorted(sys.modules)))
    draft.replace(TARGET)


signal.signal(signal.SIGUSR1, write_modules)
main()
