"""What the parts of replicated entities share: the proxy around them, and the commands that go through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cloudstate_core.transport.api import Transport
from stateful_proxy.absence import Absence
from stateful_proxy.callers import Callers
from stateful_proxy.crdt.delivery import Delivery
from stateful_proxy.crdt.dialects import Dialect
from stateful_proxy.crdt.replication import Replication
from stateful_proxy.follow_ups import FollowUps
from stateful_proxy.in_flight import InFlight
from stateful_proxy.service import MethodInfo


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What replicated entities use of the proxy."""

    transport: Transport
    function: int
    callers: Callers
    follow_ups: FollowUps
    replication: Replication
    absence: Absence
    report_error: Callable[[str], None]
    wall_clock: Callable[[], int]
    """Milliseconds since 1970."""
    in_flight: InFlight
    dialect: Dialect
    flush: Callable[[], None]
    """Send what was asked of the journal."""

    def after(self, seconds: float, then: Callable[[], None]) -> int:
        """Call back later; what that asks of the journal goes out. The timer's id."""

        def over() -> None:
            then()
            self.flush()

        return self.transport.after(seconds, over)


@dataclass(slots=True, eq=False)
class Command:
    """One call on the key."""

    call: int
    method: MethodInfo
    payload: bytes
    chain: tuple[str, ...] = ()
    command_id: str = ""
    metadata: bytes = b""
    """What of the caller's metadata the function gets, encoded."""
    number: int = 0
    since: float = 0.0
    """When it came, and then when it was given to the function, in monotonic seconds."""
    gone: bool = False
    """Its caller waits no more."""
    delivery: Delivery = field(init=False)
