"""Settings: ``base`` for everything, ``dev``, ``test`` and ``prod`` for what differs, ``env`` reads variables."""
