"""Settings: ``base`` gathers the modules by subject; ``dev``, ``test`` and ``prod`` say what differs; ``env`` reads variables."""
