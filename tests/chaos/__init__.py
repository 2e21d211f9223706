"""``kill -9`` of a random process at a random moment, again and again, on the running portal: ``python -m tests.chaos``."""
