"""``python -m workbench.launch demo | ui | dev``: the portal on one machine, under one supervisor."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from workbench.supervisor import Supervisor, free_port, wait_for_web


def main() -> int:
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(prog="python -m workbench.launch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("demo", "the demonstration"),
        ("ui", "the portal"),
        ("dev", "the portal with logs and the front end reloading"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "--data-dir", type=Path, default=Path(os.environ.get("WORKBENCH_DATA_DIR", "var"))
        )
        command.add_argument("--port", type=int, default=8000)
    commands.choices["demo"].add_argument("--exit", action="store_true", help="stop after the last step")
    commands.choices["ui"].add_argument("--model", help="Hub id, folder or GGUF file to add")
    commands.choices["ui"].add_argument("--sae-dir", type=Path, help="folder of SAEs to add")
    arguments = parser.parse_args()
    data_dir = arguments.data_dir.absolute()
    if arguments.command == "demo":
        from workbench.demo.run import demo

        return demo(data_dir=data_dir, port=arguments.port, stop_afterwards=arguments.exit)
    return _serve(
        data_dir,
        arguments.port,
        development=arguments.command == "dev",
        model=getattr(arguments, "model", None),
        sae_dir=getattr(arguments, "sae_dir", None),
    )


def _serve(data_dir: Path, port: int, *, development: bool, model: str | None, sae_dir: Path | None) -> int:
    supervisor = Supervisor(data_dir, free_port(port), echo=development)
    supervisor.stop_on_signals()
    vite: subprocess.Popen[bytes] | None = None
    try:
        supervisor.prepare()
        account = _first_account(supervisor)
        if model or sae_dir:
            _bring_along(supervisor, model, sae_dir)
        supervisor.start()
        wait_for_web(supervisor)
        if development and shutil.which("npm"):
            environment = os.environ | {"WORKBENCH_PORT": str(supervisor.port)}
            vite = subprocess.Popen(["npm", "run", "dev"], cwd="frontend", env=environment)
        print(f"\nThe portal is at {supervisor.url}{account}\nStop it with Ctrl-C.", flush=True)
        supervisor.wait()
    except (RuntimeError, TimeoutError) as error:
        print(f"The portal did not start: {error}", file=sys.stderr)
        return 1
    finally:
        if vite is not None:
            vite.terminate()
        supervisor.stop()
    return 0


def _first_account(supervisor: Supervisor) -> str:
    """Make the administrator of a fresh data folder; says how to sign in the first time only."""
    password = secrets.token_urlsafe(9)
    options = ["--username", "admin", "--email", "admin@example.org", "--staff"]
    said = supervisor.manage("ensure_user", *options, extra={"WORKBENCH_PASSWORD": password})
    return f" (sign in as admin / {password})" if "created" in said else ""


def _bring_along(supervisor: Supervisor, model: str | None, sae_dir: Path | None) -> None:
    options = ["--username", "admin"]
    if model:
        options += ["--model", model]
    if sae_dir:
        options += ["--sae-dir", str(sae_dir.absolute())]
    print(supervisor.manage("bring_along", *options), end="")


if __name__ == "__main__":
    sys.exit(main())
