"""The transport on the native engine (`cloudstate_engine`): the product's data path.

The class inherits the engine's methods, so that no Python stands between policy and the innermost path; only life and logging are here.
Beyond the interface, `connect`, `open`, `send`, `after` and their like may also be called from other threads: they wait for the I/O thread.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref

from cloudstate_engine import Engine

from cloudstate_core.transport.api import Outcome, Stats

log = logging.getLogger(__name__)


def _log(error: BaseException) -> None:
    log.error("a transport callback failed", exc_info=error)


class NativeTransport(Engine):
    """See `cloudstate_core.transport.api.Transport`."""

    def __init__(self) -> None:
        outcomes = tuple(sorted(Outcome))
        self._thread = threading.Thread(target=self.run, args=(_log, outcomes), name="transport", daemon=True)
        self._thread.start()
        _running.add(self)

    def join(self) -> None:
        """See Transport."""
        self._thread.join()

    def stats(self) -> Stats:
        """See Transport."""
        return Stats(*self.counters())


_running: weakref.WeakSet[NativeTransport] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """End the I/O threads while there is an interpreter for them to leave."""
    for transport in list(_running):
        transport.stop()
        transport.join()
