"""The activator's process: settings from the environment, a drain on SIGTERM, exit code 1 when it cannot serve."""

from __future__ import annotations

import logging
import os
import signal
import sys

from activator.app import Activator
from activator.settings import SettingsError, settings_of


def main() -> int:
    """Run until told to stop."""
    logging.basicConfig(level=os.environ.get("CLOUDSTATE_LOG", "WARNING"), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        activator = Activator(settings_of(os.environ))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: activator.drain())
        activator.start()
    except (SettingsError, OSError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    while not activator.ended.wait(1.0):
        pass
    activator.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
