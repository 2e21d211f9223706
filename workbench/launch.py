"""``python -m workbench.launch demo | pictures | ui | dev``: the portal on one machine, under one supervisor."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from workbench.supervisor import Supervisor, free_port, wait_for_web

# Who signs in first on a fresh data folder, and the project that `--model` fills.
_ADMIN, _PROJECT = "admin", "Laboratory"


def main() -> int:
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(prog="python -m workbench.launch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("demo", "the demonstration"),
        ("pictures", "the demonstration, photographed for README and docs"),
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
        from workbench.demo.run import demo, serve

        then = (lambda shown: None) if arguments.exit else serve
        return demo(data_dir=data_dir, port=arguments.port, then=then)
    if arguments.command == "pictures":
        from workbench.demo.pictures import photograph
        from workbench.demo.run import demo

        return demo(data_dir=data_dir, port=arguments.port, then=photograph)
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
        supervisor.start()
        wait_for_web(supervisor)
        if development and shutil.which("npm"):
            environment = os.environ | {"WORKBENCH_PORT": str(supervisor.port)}
            vite = subprocess.Popen(["npm", "run", "dev"], cwd="frontend", env=environment)
        if supervisor.port != port:
            print(f"Port {port} is taken; the portal uses {supervisor.port}.", flush=True)
        print(f"\nThe portal is at {supervisor.url}{account}\nStop it with Ctrl-C.", flush=True)
        if model:
            _bring_along(supervisor, model, sae_dir)
        supervisor.wait()
    except KeyboardInterrupt:
        return 0
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
    options = ["--username", _ADMIN, "--email", "admin@example.org", "--staff"]
    said = supervisor.manage("ensure_user", *options, extra={"WORKBENCH_PASSWORD": password})
    return f" (sign in as {_ADMIN} / {password})" if "created" in said else ""


def _bring_along(supervisor: Supervisor, model: str, sae_dir: Path | None) -> None:
    """Put a model and SAEs into the administrator's project, by the command a person would type.

    What fails is said there; the portal runs on.
    """
    supervisor.manage("ensure_project", "--owner", _ADMIN, "--name", _PROJECT)
    scopes = ["--scopes", "write", "jobs", "artifacts", "admin"]
    token = supervisor.manage(
        "issue_token", "--username", _ADMIN, "--name", "microscope ui", "--minutes", "60", *scopes
    ).strip()
    command = [sys.executable, "-m", "microscope", "remote", "add-model", model, "--project", _PROJECT]
    if sae_dir is not None:
        command += ["--sae-dir", str(sae_dir)]
    access = {"MICROSCOPE_URL": supervisor.url, "MICROSCOPE_TOKEN": token}
    done = subprocess.run(command, env=supervisor.environment | access)
    if done.returncode == 0:
        print(f"Open the project {_PROJECT} at {supervisor.url}.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
