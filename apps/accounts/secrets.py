"""Secrets that are given out once and recognised later."""

from __future__ import annotations

import hashlib


def digest_of(secret: str) -> str:
    """What is stored of a secret. A plain hash will do: 256 random bits cannot be guessed from it."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
