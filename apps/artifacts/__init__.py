"""Files that belong to a project: recordings, SAEs, reports, uploaded text."""
