"""Where a person's address and token are kept between commands."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from microscope.errors import MicroscopeError

URL, TOKEN = "MICROSCOPE_URL", "MICROSCOPE_TOKEN"


class Login(Struct, frozen=True):
    """A portal and what opens it; ``project`` is the one meant when none is named."""

    url: str
    token: str
    project: str = ""


def login_file() -> Path:
    """``remote.json`` in the user's configuration folder."""
    root = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(root) / "microscope" / "remote.json"


def stored_login() -> Login:
    """From the environment variables ``MICROSCOPE_URL`` and ``MICROSCOPE_TOKEN``, else from the file.

    Raises:
        MicroscopeError: ``not_signed_in``.
    """
    file = login_file()
    known = Login("", "")
    if file.exists():
        try:
            known = msgspec.json.decode(file.read_bytes(), type=Login)
        except msgspec.DecodeError as error:
            raise MicroscopeError(
                "bad_login_file", f"{file} cannot be read: {error}.", "Run `microscope remote login` again."
            ) from error
    url = os.environ.get(URL) or known.url
    token = os.environ.get(TOKEN) or known.token
    if not url or not token:
        raise MicroscopeError(
            "not_signed_in",
            "No portal and token are known.",
            f"Run `microscope remote login URL`, or set {URL} and {TOKEN}.",
        )
    return Login(url, token, known.project)


def store_login(login: Login) -> Path:
    """Keep it where only its owner reads it."""
    file = login_file()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(msgspec.json.encode(login))
    part.replace(file)
    return file
