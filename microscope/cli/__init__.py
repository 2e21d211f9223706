"""The command line: ``microscope trace | train | eval | features | inspect | ui | doctor``."""

from microscope.cli.main import main

__all__ = ["main"]
