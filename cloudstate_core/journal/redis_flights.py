"""Pipelines under way on one connection: while the server works on one, the next is made and sent.

A flight carries a group of batches and is answered whole. It goes twice if the server lacks the scripts, or has no memory for what shares a
call with a question: in both cases nothing was performed of what is asked again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from cloudstate_core.journal.answering import deliver
from cloudstate_core.journal.api import (
    Appended,
    Claimed,
    Done,
    Fenced,
    Layout,
    Operation,
    Outcome,
    Question,
    Raced,
    Sealed,
    Unknown,
)  # fmt: skip
from cloudstate_core.journal.redis_calls import ShardCall, settle, shard_calls
from cloudstate_core.journal.redis_format import SCRIPTS, Names
from cloudstate_core.journal.redis_link import Answer, Link, Lost, Unfit

log = logging.getLogger(__name__)

Batch = tuple[Sequence[Operation], Done]


@dataclass(slots=True)
class _Flight:
    group: list[Batch]
    outcomes: list[Outcome | None]
    calls: dict[int, ShardCall]
    loads: int = 0
    """Scripts that go before the calls."""
    again: dict[int, ShardCall] = field(default_factory=dict)
    questions: list[tuple[int, Operation]] = field(default_factory=list)


class Flights:
    """What is under way on `link`. Answers are given on the caller's thread; one receiver's failure is not another's."""

    def __init__(self, link: Link, where: str, names: Names, layout: Layout, epochs: dict[int, int]) -> None:
        """`epochs`: the highest known of each shard, kept over connections."""
        self._link, self._where, self._names, self._layout, self._epochs = link, where, names, layout, epochs
        self._flights: deque[_Flight] = deque()

    def __len__(self) -> int:
        return len(self._flights)

    async def send(self, group: list[Batch]) -> None:
        """Put a group of batches under way. Lost when the connection breaks; the group is under way nevertheless."""
        operations = [operation for batch, _ in group for operation in batch]
        flight = _Flight(group, [None] * len(operations), {})
        self._flights.append(flight)
        flight.calls = shard_calls(self._where, self._names, self._layout, enumerate(operations), flight.outcomes)
        await self._link.send([call.packed() for call in flight.calls.values()])

    async def receive(self) -> None:
        """Answer the first group under way. Lost when the connection breaks; Unfit when the server is not what it was."""
        flight = self._flights[0]
        try:
            answers = await self._link.receive(flight.loads + len(flight.calls))
        except Lost as error:
            self._settle(flight, error.answers)
            raise
        changed = self._settle(flight, answers)
        if not changed and await self._repeated(flight):
            return
        self._flights.popleft()
        self._answer(flight, changed)
        if changed:
            raise Unfit(f"{self._where}: the server is not what it was when it was connected to: {changed}")

    def abandon(self, reason: str) -> None:
        """The connection is lost: whatever has no answer yet has an unknown outcome."""
        while self._flights:
            self._answer(self._flights.popleft(), reason)

    def _settle(self, flight: _Flight, answers: Sequence[Answer]) -> str:
        """Put outcomes in their places; why the server must be looked at anew, or ''."""
        changed = ""
        for (shard, call), answer in zip(flight.calls.items(), answers[flight.loads :], strict=False):
            error = answer if isinstance(answer, str) else ""
            if error.startswith("NOSCRIPT") and not flight.loads:
                flight.again[shard] = call
                continue
            if settle(self._where, call, answer, flight.outcomes):
                changed = str(answer)
            for place, operation in call.asked:
                outcome = flight.outcomes[place]
                if type(outcome) is not Appended:
                    self._watch(shard, outcome)
                if error.startswith("OOM") and isinstance(operation, Question):
                    flight.questions.append((place, operation))
        return changed

    async def _repeated(self, flight: _Flight) -> bool:
        """Send what is to be asked again, behind everything that is under way; False when there is nothing."""
        loads = SCRIPTS if flight.again else ()
        flight.calls, flight.again = flight.again, {}
        if not flight.calls:
            flight.calls = shard_calls(self._where, self._names, self._layout, flight.questions, flight.outcomes)
            flight.questions = []
        if not flight.calls:
            return False
        self._flights.rotate(-1)
        flight.loads = len(loads)
        await self._link.send([*(script.load() for script in loads), *(call.packed() for call in flight.calls.values())])
        return True

    def _watch(self, shard: int, outcome: Outcome | None) -> None:
        """Epochs only grow, unless the store has lost acknowledged writes: that is told once."""
        if isinstance(outcome, Claimed):
            epoch = outcome.token.epoch
        elif isinstance(outcome, Sealed | Fenced | Raced):
            epoch = outcome.epoch
        else:
            return
        was = self._epochs.get(shard, 0)
        if epoch < was:
            log.error("%s: shard %d is at epoch %d, was at %d: the store lost acknowledged writes", self._where, shard, epoch, was)
        self._epochs[shard] = epoch

    def _answer(self, flight: _Flight, reason: str) -> None:
        settled = [outcome or Unknown(f"{self._where}: {reason}") for outcome in flight.outcomes]
        begin = 0
        for batch, done in flight.group:
            deliver(done, settled[begin : begin + len(batch)])
            begin += len(batch)
