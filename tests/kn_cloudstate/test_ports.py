"""Ports for processes that are about to start: free, not given twice at a time, and out of the way of outgoing connections."""

from __future__ import annotations

import pathlib
import socket
from collections import deque

import pytest

from kn_cloudstate import ports
from kn_cloudstate.ports import free_port

EPHEMERAL = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_ports_can_be_taken_and_are_given_once() -> None:
    given = [free_port() for _ in range(50)]
    assert len(set(given)) == 50
    for port in given:
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_no_outgoing_connection_can_have_taken_one() -> None:
    lowest = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 32_768
    assert lowest >= ports.HIGH


def test_a_port_that_somebody_listens_on_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = free_port()
    offered = iter([taken, taken + 1, taken + 2, taken + 3])
    monkeypatch.setattr(ports, "_given", deque())
    monkeypatch.setattr(ports.random, "randrange", lambda low, high: next(offered))
    with socket.create_server(("127.0.0.1", taken)):
        assert free_port() > taken


def test_ports_of_long_ago_are_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are some twenty thousand: a service that comes from zero each minute has used them up in two weeks."""
    first, second, third = (free_port() for _ in range(3))
    offered = iter([first, second, first, third, first])
    monkeypatch.setattr(ports, "_given", deque(maxlen=2))
    monkeypatch.setattr(ports.random, "randrange", lambda low, high: next(offered))
    assert [free_port() for _ in range(4)] == [first, second, third, first]
