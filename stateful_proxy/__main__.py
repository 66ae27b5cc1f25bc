"""The stateful proxy's process."""

from __future__ import annotations

import sys

from cloudstate_core.process import run
from stateful_proxy.app import Proxy
from stateful_proxy.settings import settings_of


def main() -> int:
    """Run until told to stop."""
    return run(lambda environment: Proxy(settings_of(environment)))


if __name__ == "__main__":
    sys.exit(main())
