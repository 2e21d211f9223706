"""Template tags of the administration."""
