"""``python -m microscope`` is the ``microscope`` command."""

from microscope.cli import main

main()
