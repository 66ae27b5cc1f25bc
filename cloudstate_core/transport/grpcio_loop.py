"""The one thread of the grpcio transport: an asyncio loop that carries all I/O and every callback of policy.

Guarantees: callbacks run one at a time; events of one turn of the loop are told together; an exception of a callback is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from cloudstate_core.transport.api import Event

log = logging.getLogger(__name__)
T = TypeVar("T")


class EventLoop:
    """Thread, events, tasks and timers; ids are unique over calls, streams, upstreams and timers."""

    def __init__(self) -> None:
        self.asyncio = asyncio.new_event_loop()
        self.ids = itertools.count(1)
        self.batches = self.events = 0
        self._on_batch: Callable[[list[Event]], None] | None = None
        self._pending: list[Event] = []
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="transport", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.asyncio)
        self.asyncio.run_forever()
        pending = asyncio.all_tasks(self.asyncio)
        for task in pending:
            task.cancel()
        self.asyncio.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        # Not closed: grpc's poller is shared by all loops of a process and may still post a completion here.

    def start(self, on_batch: Callable[[list[Event]], None]) -> None:
        """Tell events from now on; those that came before are told first."""

        def begin() -> None:
            self._on_batch = on_batch
            if self._pending:
                self._flush()

        self.asyncio.call_soon_threadsafe(begin)

    def stop(self, close: Callable[[], Awaitable[None]]) -> None:
        """Tell nothing more, run `close`, end the thread. From any thread; a no-op when it has ended."""

        async def end() -> None:
            self._on_batch = lambda events: None
            try:
                await close()
            finally:
                self.asyncio.stop()

        if self._thread.is_alive():
            self.asyncio.call_soon_threadsafe(lambda: self.spawn(end()))

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def inside(self) -> bool:
        """Whether the caller is on the loop's thread."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """From another thread: run to its end on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.asyncio).result()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that is kept until it ends."""
        task = self.asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def emit(self, event: Event) -> None:
        """Tell policy, together with what else happens in this turn."""
        if not self._pending and self._on_batch is not None:
            self.asyncio.call_soon(self._flush)
        self._pending.append(event)

    def _flush(self) -> None:
        events, self._pending = self._pending, []
        on_batch = self._on_batch
        if events and on_batch is not None:
            self.batches += 1
            self.events += len(events)
            self.guard(lambda: on_batch(events))

    def guard(self, callback: Callable[[], None]) -> None:
        """Call policy; its exception is logged and ends nothing."""
        try:
            callback()
        except Exception:
            log.exception("a transport callback failed")

    def post(self, callback: Callable[[], None]) -> None:
        """From any thread: call on the loop's thread; forgotten once the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self.asyncio.call_soon_threadsafe(self.guard, callback)

    def after(self, delay: float, callback: Callable[[], None]) -> int:
        """Call once after `delay` seconds; returns a timer id."""
        timer = next(self.ids)

        def fire() -> None:
            self._timers.pop(timer, None)
            self.guard(callback)

        def arm() -> None:
            self._timers[timer] = self.asyncio.call_later(max(delay, 0.0), fire)

        if self.inside():
            arm()
        else:
            self.asyncio.call_soon_threadsafe(arm)
        return timer

    def cancel(self, timer: int) -> None:
        """Forget a timer."""
        if (handle := self._timers.pop(timer, None)) is not None:
            handle.cancel()
