"""The autoscaler's process on a cluster."""

from __future__ import annotations

import sys

from autoscaler.cluster.app import Autoscaler
from autoscaler.cluster.settings import settings_of
from cloudstate_core.process import run


def main() -> int:
    """Run until told to stop."""
    return run(lambda environment: Autoscaler(settings_of(environment)))


if __name__ == "__main__":
    sys.exit(main())
