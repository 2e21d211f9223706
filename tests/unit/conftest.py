"""Tiny models, a small corpus, a recording and an SAE, made once per session."""

from tests.engine_fixtures import *  # noqa: F403 (fixtures)
