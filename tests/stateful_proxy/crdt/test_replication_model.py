"""Replicas of one key in a world that loses, doubles and delays: messages between them, answers of the journal, and the replicas themselves.

Each change adds a power of three of its own to a counter, so that the sum tells how often each of them was counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloudstate_core.journal.api import EntityKey, Outcome, Read, Refused, Stored, Swap, Unknown
from cloudstate_core.journal.memory import MemoryJournal
from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from stateful_proxy.crdt import wire
from stateful_proxy.crdt.causality import Onlooker
from stateful_proxy.crdt.keeper import Keeper, Ports
from stateful_proxy.crdt.kinds import Incompatible
from stateful_proxy.crdt.replica import Operation
from stateful_proxy.crdt.state import Record
from stateful_proxy.crdt.views import Count

KEY = EntityKey("counter", "k")
MAX_CHANGES = 39


@dataclass
class Change:
    """One change: its operation, and what its caller was told."""

    operation: Operation
    amount: int
    told: str = ""
    """'' nothing yet; 'done', or 'lost'."""


@dataclass
class Node:
    """One process with the key in memory."""

    name: str
    living: frozenset[str] = frozenset()
    keeper: Keeper = field(init=False)
    requests: list[tuple[Read | Swap, Callable[[Outcome], None]]] = field(default_factory=list)
    inbox: list[tuple[int, bytes | None]] = field(default_factory=list)
    timers: list[Callable[[], None]] = field(default_factory=list)
    loaded_: bool = False

    def loaded(self, problem: str) -> None:
        self.loaded_ = not problem

    def changed(self) -> None:
        """Nobody to tell."""

    def idle(self) -> None:
        """Nobody to tell."""


class World(RuleBasedStateMachine):
    """Three nodes at a time; a node that crashes comes back as another."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = MemoryJournal("test/crdt", 1)
        self.names = (f"node-{n}" for n in itertools.count())
        self.changes: list[Change] = []
        self.late: list[Swap] = []
        self.nodes = [self.node() for _ in range(3)]
        self.everybody()

    def node(self, name: str = "") -> Node:
        node = Node(name or next(self.names))

        def publish(key: EntityKey, version: int, record: bytes | None) -> None:
            for other in self.nodes:
                if other is not node:
                    other.inbox.append((version, record))

        ports = Ports(
            lambda operation, then: node.requests.append((operation, then)),
            lambda seconds, then: node.timers.append(then),
            publish,
            lambda: node.living,
        )
        node.keeper = Keeper(KEY, 0, node.name, ports)
        node.keeper.start(node)
        return node

    def everybody(self) -> None:
        up = frozenset(node.name for node in self.nodes)
        for node in self.nodes:
            node.living = up
            node.keeper.members_changed()

    def at_journal(self, operation: Read | Swap) -> Outcome:
        outcomes: list[Outcome] = []
        self.journal.submit([operation], outcomes.extend)
        return outcomes[0]

    def record(self) -> Record | None:
        stored = self.at_journal(Read(0, KEY))
        assert isinstance(stored, Stored)
        return wire.decoded(stored.value.data) if stored.value is not None else None

    # What nodes do ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.changes) < MAX_CHANGES)
    @rule(at=st.integers(0, 2))
    def change(self, at: int) -> None:
        node = self.nodes[at]
        if self.may_change(node):
            amount = 3 ** len(self.changes)
            operation = node.keeper.replica.update(pb.CrdtDelta(gcounter=pb.GCounterDelta(increment=amount)), 0)
            assert not isinstance(operation, Incompatible)
            self.keep(node, operation, amount)

    @rule(at=st.integers(0, 2), really=st.integers(0, 3))
    def delete(self, at: int, really: int) -> None:
        node = self.nodes[at]
        if not really and self.may_change(node) and node.keeper.replica.state is not None:
            self.keep(node, node.keeper.replica.delete(0), 0)

    def may_change(self, node: Node) -> bool:
        """Its value has been read, and has not been deleted."""
        replica = node.keeper.replica
        return node.loaded_ and not replica.ended and not any(operation.delta is None for operation in replica.pending)

    def keep(self, node: Node, operation: Operation, amount: int) -> None:
        change = Change(operation, amount)
        if amount:
            self.changes.append(change)

        def settled(version: int, reason: str) -> None:
            assert not change.told
            change.told = "lost" if reason else "done"

        node.keeper.keep(operation, settled)

    @rule(at=st.integers(0, 2))
    def passivate(self, at: int) -> None:
        node = self.nodes[at]
        if node.loaded_ and not node.keeper.busy:
            self.nodes[at] = self.node(node.name)
            self.nodes[at].living = node.living

    @rule(at=st.integers(0, 2))
    def crash(self, at: int) -> None:
        """Its requests may still be on their way to the journal."""
        self.late += [operation for operation, _ in self.nodes[at].requests if isinstance(operation, Swap)]
        self.nodes[at] = self.node()
        self.nodes[at].living = frozenset(node.name for node in self.nodes)

    # What the world does ------------------------------------------------------------------------------------------------

    @rule(at=st.integers(0, 2))
    def journal_answers(self, at: int) -> None:
        node = self.nodes[at]
        if node.requests:
            operation, then = node.requests.pop(0)
            then(self.at_journal(operation))

    @rule(at=st.integers(0, 2), how=st.sampled_from(["applied", "not applied", "applied later", "refused"]))
    def journal_fails(self, at: int, how: str) -> None:
        node = self.nodes[at]
        if node.requests:
            operation, then = node.requests.pop(0)
            if how == "applied":
                self.at_journal(operation)
            elif how == "applied later" and isinstance(operation, Swap):
                self.late.append(operation)
            then(Refused("full") if how == "refused" else Unknown("no answer"))

    @precondition(lambda self: bool(self.late))
    @rule(which=st.integers(0, 9))
    def journal_wakes_up(self, which: int) -> None:
        self.at_journal(self.late.pop(which % len(self.late)))

    @rule(at=st.integers(0, 2), which=st.integers(0, 9), again=st.booleans())
    def message_arrives(self, at: int, which: int, again: bool) -> None:
        node = self.nodes[at]
        if node.inbox:
            number = which % len(node.inbox)
            version, record = node.inbox[number] if again else node.inbox.pop(number)
            if node.loaded_:
                node.keeper.hear(version, wire.decoded(record) if record is not None else None)

    @rule(at=st.integers(0, 2))
    def message_is_lost(self, at: int) -> None:
        if self.nodes[at].inbox:
            self.nodes[at].inbox.pop(0)

    @rule(at=st.integers(0, 2))
    def time_passes(self, at: int) -> None:
        timers, self.nodes[at].timers = self.nodes[at].timers, []
        for timer in timers:
            timer()

    @rule(at=st.integers(0, 2), others=st.sets(st.integers(0, 2)))
    def members_seem_to_be(self, at: int, others: set[int]) -> None:
        """A node's list of members may be wrong either way, but for the node itself."""
        node = self.nodes[at]
        node.living = frozenset([node.name, *(self.nodes[other].name for other in others)])
        node.keeper.members_changed()

    @rule(at=st.integers(0, 2))
    def read_again(self, at: int) -> None:
        if self.nodes[at].loaded_:
            self.nodes[at].keeper.read()

    # What holds ---------------------------------------------------------------------------------------------------------

    @invariant()
    def every_change_is_counted_as_its_caller_was_told(self) -> None:
        record = self.record()
        total = 0
        if record is not None:
            view = record.state.view(Onlooker("", frozenset()))
            assert isinstance(view, Count)
            total = view.total
        for change in self.changes:
            total, times = divmod(total, 3)
            here = record is not None and change.operation.incarnation in (record.incarnation, 0)
            allowed = {"done": (1,) if here else (0,), "lost": (0,), "": (0, 1) if here else (0,)}[change.told]
            assert times in allowed, (change, times, record)
        assert not total

    def teardown(self) -> None:
        """The world heals: everything comes to an end, and all have the same."""
        self.everybody()
        for _ in range(200):
            busy = False
            for node in self.nodes:
                while node.requests:
                    busy = True
                    operation, then = node.requests.pop(0)
                    then(self.at_journal(operation))
                timers, node.timers = node.timers, []
                for timer in timers:
                    busy = True
                    timer()
            if not busy:
                break
        else:
            raise AssertionError("never at rest")
        self.every_change_is_counted_as_its_caller_was_told()
        for node in self.nodes:
            if node.loaded_ and not node.keeper.replica.ended:
                node.keeper.read()
                while node.requests:
                    operation, then = node.requests.pop(0)
                    then(self.at_journal(operation))
        mine = [change for node in self.nodes for change in self.changes if change.operation in node.keeper.replica.pending]
        assert mine == []
        record = self.record()
        for node in self.nodes:
            if node.loaded_ and not node.keeper.replica.ended:
                assert node.keeper.replica.state == (record.state if record is not None else None)


TestWorld: Any = World.TestCase
TestWorld.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
