"""The revision controller's process."""

from __future__ import annotations

import sys

from cloudstate_core.process import run
from revision_controller.app import RevisionController
from revision_controller.settings import settings_of


def main() -> int:
    """Run until told to stop."""
    return run(lambda environment: RevisionController(settings_of(environment)))


if __name__ == "__main__":
    sys.exit(main())
