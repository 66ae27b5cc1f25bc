"""The stateful proxy's process: settings from the environment, a drain on SIGTERM, exit code 1 when it cannot serve."""

from __future__ import annotations

import logging
import os
import signal
import sys

from stateful_proxy.app import Proxy
from stateful_proxy.settings import SettingsError, settings_of


def main() -> int:
    """Run until told to stop."""
    logging.basicConfig(level=os.environ.get("CLOUDSTATE_LOG", "WARNING"), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        proxy = Proxy(settings_of(os.environ))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: proxy.drain())
        proxy.start()
    except (SettingsError, OSError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    while not proxy.ended.wait(1.0):
        pass
    proxy.stop()
    if proxy.failure:
        print(f"error: {proxy.failure}", file=sys.stderr)
    return 1 if proxy.failure else 0


if __name__ == "__main__":
    sys.exit(main())
