#!/usr/bin/env python
"""Django's command line, with the development settings unless the environment says otherwise."""

import os
import sys


def main() -> None:
    """Run one management command."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "workbench.settings.dev")
    from django.core.management import execute_from_command_line

    from apps.core.extensions import BrokenExtension

    try:
        execute_from_command_line(sys.argv)
    except BrokenExtension as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
