"""The life of a component's process: made from the environment, started, drained on SIGTERM, stopped; one place for what all share."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Protocol


class SettingsError(Exception):
    """A setting is wrong: names the key, the value and the rule."""


class Component(Protocol):
    """What a process runs. `ended` is set once a drain is over, or when `failure` says why the component cannot serve."""

    ended: threading.Event
    failure: str

    def start(self) -> None:
        """Bind the ports and begin. OSError when one is taken."""

    def drain(self) -> None:
        """From any thread: end in good order."""

    def stop(self) -> None:
        """Close everything."""


def run(make: Callable[[Mapping[str, str]], Component]) -> int:
    """Run a component until it has ended; the exit code: 0 as asked, 1 when it cannot serve (told on standard error)."""
    logging.basicConfig(level=os.environ.get("CLOUDSTATE_LOG", "WARNING"), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        component = make(os.environ)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: component.drain())
        component.start()
    except (SettingsError, OSError, ImportError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    while not component.ended.wait(1.0):
        pass
    component.stop()
    if component.failure:
        print(f"error: {component.failure}", file=sys.stderr)
    return 1 if component.failure else 0
