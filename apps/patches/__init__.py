"""Patches: named plans of edits, with every version they ever had."""
