"""Counts to a number, one checkpoint per step, and tells how often it was started."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from microscope.processes.child import die_with_parent

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path)
parser.add_argument("--events")
parser.add_argument("--cancel-file", type=Path)
options = parser.parse_args()
config = json.loads(options.config.read_text())


def say(**event):
    print(json.dumps(event), flush=True)


def refuse(error):
    """As a command of the engine says it."""
    from microscope.cli.reporting import EventProgress
    from microscope.cli.running import report

    sys.exit(report(error, EventProgress(sys.stdout, None)))


die_with_parent()
out = Path(config["out"])
checkpoint = out / "checkpoints" / "count"
checkpoint.parent.mkdir(parents=True, exist_ok=True)
with (out / "starts.txt").open("a+") as starts:
    starts.write(f"{os.getpid()}\n")
    starts.seek(0)
    first = len(starts.readlines()) == 1

match config["behaviour"]:
    case "refuse":
        say(type="error", code="layer_out_of_range", message="There is no block 99.", hint="Use 3.")
        sys.exit(3)
    case "crash":
        print("Traceback: something broke", file=sys.stderr, flush=True)
        os.abort()
    case "silent":
        sys.exit(0)
    case "chatty":
        print("this is no event")
        for number in range(3000):
            say(type="log", message=f"line {number}")
    case "nan":
        print('{"type":"progress","phase":"counting","done":1,"total":2,"metrics":{"loss":null,"fvu":0.5}}')
    case "greedy":
        hoard = []
        try:
            while True:
                hoard.append(b"x" * 2**24)
        except MemoryError as error:
            hoard.clear()
            refuse(error)
    case "busy":
        while True:
            pass
    case "long":
        try:
            with (out / "long").open("wb") as file:
                while True:
                    file.write(bytes(2**20))
        except OSError as error:
            refuse(error)
    case "full" | "overfull":
        # Everything that is free, then more words than a pipe holds.
        ballast = out / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                while file.write(b"x" * 4096):
                    pass
        except OSError as error:
            print("it is full:", error, file=sys.stderr)
            for number in range(3000):
                print(f"complaint {number:060}", file=sys.stderr)
            if config["behaviour"] == "overfull":
                refuse(error)
        ballast.unlink()
if config["stubborn"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

done = int(checkpoint.read_text()) if checkpoint.exists() else 0
say(type="log", message=f"starting at {done}")
while done < config["count"]:
    if not config["stubborn"] and options.cancel_file.exists():
        sys.exit(4)
    time.sleep(config["delay"])
    if first and done == config.get("pause_at"):
        continue
    done += 1
    draft = checkpoint.with_suffix(".tmp")
    draft.write_text(str(done))
    draft.replace(checkpoint)
    say(
        type="progress",
        phase="counting",
        done=done,
        total=config["count"],
        unit="steps",
        rate=1 / config["delay"],
        metrics={"half": done / 2},
    )
    say(type="checkpoint", done=done, total=config["count"], unit="steps")
(out / "number.txt").write_text(str(done))
say(type="result", result={"number": done, "pid": os.getpid()})
