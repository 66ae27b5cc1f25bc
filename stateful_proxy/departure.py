"""How a proxy ends: its shards are handed over, then its calls end, then it says so.

Takes GRACE seconds at most. Nothing that a caller was told is lost by it: what cannot be handed over in time is sealed, and whoever claims it next
goes on from the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cloudstate_core.transport.api import Transport
from stateful_proxy.serving import Serving

GRACE = 10.0
"""Seconds from the order to stop to the end of the process."""
HANDOVER_LIMIT = 7.0
"""Seconds of those in which the leader may move the shards away; then they are sealed without a successor."""
CLOSING = 1.0
"""Seconds of those that are kept for calls to end in."""
LOOK = 0.02
"""Seconds between looks whether every shard has been handed over."""


class Departure:
    """One proxy's end; `ended` is called when it is over. `serving` is None for a proxy that never served."""

    def __init__(self, transport: Transport, serving: Serving | None, ended: Callable[[], None]) -> None:
        self._transport, self._serving, self._ended = transport, serving, ended
        self._deadline = time.monotonic() + GRACE
        self._closing = False

    def begin(self, at_once: bool) -> None:
        """`at_once`: take no further command, and do not wait for the leader to choose successors."""
        serving = self._serving
        if serving is None:
            self._end()
            return
        serving.absence.changed(serving.absence.problem, final=True)
        serving.health.close()
        if serving.coordinator is None:
            self._close(serving)
            return
        serving.coordinator.draining = True
        serving.ownership.leave()
        if at_once:
            serving.ownership.drain_all()
        serving.coordinator.beat()
        self._transport.after(HANDOVER_LIMIT, lambda: self._give_up(serving))
        self._await_handover(serving)

    def _give_up(self, serving: Serving) -> None:
        """The leader did not move these in time: seal them without a successor."""
        serving.ownership.drain_all()
        serving.batch.flush()

    def _await_handover(self, serving: Serving) -> None:
        if serving.ownership.settled or time.monotonic() >= self._deadline - CLOSING:
            self._close(serving)
        else:
            self._transport.after(LOOK, lambda: self._await_handover(serving))

    def _close(self, serving: Serving) -> None:
        """Replicated entities leave; then what has been passed on to other proxies, or is at the function still, may end."""
        serving.event_logs.stop()
        serving.crdts.leave(self._end)
        serving.batch.flush()
        self._transport.after(max(0.0, self._deadline - time.monotonic() - CLOSING), self._end)

    def _end(self) -> None:
        if not self._closing:
            self._closing = True
            self._transport.drain(max(0.5, self._deadline - time.monotonic()), self._ended)
