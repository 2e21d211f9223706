"""Secrets that are given out once and recognised later."""

from __future__ import annotations

import hashlib
import hmac

from django.utils.crypto import salted_hmac


def digest_of(secret: str) -> str:
    """What is stored of a secret. A plain hash will do: 256 random bits cannot be guessed from it."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def as_mailed(secret: str) -> str:
    """A secret the way it is sent by mail: with a proof that is shown to nobody else, not even to the sender."""
    return f"{secret}.{_proof(secret)}"


def secret_in(text: str) -> str:
    """The secret itself, of one that was mailed or handed over."""
    return text.partition(".")[0]


def was_mailed(text: str) -> bool:
    """Whether the text was read in the mail it was sent in."""
    secret, _, proof = text.partition(".")
    return hmac.compare_digest(proof.encode(errors="surrogatepass"), _proof(secret).encode())


def _proof(secret: str) -> str:
    mac = salted_hmac("apps.accounts.mailed", secret.encode(errors="surrogatepass"), algorithm="sha256")
    return mac.hexdigest()[:43]
