"""A job kind that exists in tests only: its child counts, with checkpoints, and misbehaves on request."""
