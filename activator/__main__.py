"""The activator's process."""

from __future__ import annotations

import sys

from activator.app import Activator
from activator.settings import settings_of
from cloudstate_core.process import run


def main() -> int:
    """Run until told to stop."""
    return run(lambda environment: Activator(settings_of(environment)))


if __name__ == "__main__":
    sys.exit(main())
