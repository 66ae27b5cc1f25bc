"""What each way to the function costs the proxy: the same message as a command of every kind, by gRPC and by HTTP/JSON, interleaved."""

from __future__ import annotations

from bench.processes import Load
from bench.scenarios import UNARY, UNARY_ACTION, UNARY_VALUE, interleaved, our_proxy, user_function
from kn_cloudstate.results import Row

KINDS_BAR, JSON_BAR = 1.2, 3.0
"""Ratios to a command of an event sourced entity by gRPC."""


def rows(rounds: int, seconds: float, transport: str) -> list[Row]:
    """CPU per command of the proxy; the function's and the callers' do not count."""
    with user_function() as function:
        proxy = our_proxy(function, transport)
        runs = {
            "event sourced": (proxy, Load(UNARY, seconds)),
            "value entity": (proxy, Load(UNARY_VALUE, seconds)),
            "action": (proxy, Load(UNARY_ACTION, seconds)),
            "HTTP/JSON": (proxy, Load(UNARY, seconds, json=True)),
        }
        found = interleaved(runs, rounds)
    peer = found["event sourced"]
    return [
        Row("proxy CPU per command of a value entity", found["value entity"], "µs", "event sourced", peer, bar=KINDS_BAR),
        Row("proxy CPU per call of an action", found["action"], "µs", "event sourced", peer, bar=KINDS_BAR),
        Row("proxy CPU per command by HTTP/JSON", found["HTTP/JSON"], "µs", "the same by gRPC", peer, bar=JSON_BAR),
    ]


if __name__ == "__main__":
    print(rows(3, 4.0, "native"))
