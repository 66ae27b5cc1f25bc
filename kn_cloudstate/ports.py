"""Free ports of 127.0.0.1 for processes that are about to start.

A port that the kernel hands out for the asking may be given to anybody's outgoing connection before the process binds it. These come from below
the range that outgoing connections take, and a port is not handed out again while whoever got it may not have bound it yet.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections import deque

LOW, HIGH = 10_000, 32_000
_given = deque[int](maxlen=1_000)
"""Handed out last. An installation that runs for weeks starts more pods than there are ports."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    while True:
        port = random.randrange(LOW, HIGH)
        if port in _given:
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            _given.append(port)
            return port
