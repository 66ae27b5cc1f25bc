"""`python -m bench`: every figure that the project holds itself to, with its peer from the same run."""

from __future__ import annotations

import argparse
import sys

from bench import activator_scenario, autoscaler_tick, balance, crdt_agreement, function_process, passivated, proxy_process, redis_journal, ways_in
from bench.peers import MissingToolchain
from bench.processes import Load
from bench.scenarios import UNARY, go_peer, interleaved, our_proxy, user_function
from cloudstate_core.transport import create
from kn_cloudstate.results import Row, table, write


def native_installed() -> bool:
    """True when the native engine is there; the grpcio backend is measured alone otherwise."""
    try:
        create("native").stop()
    except ImportError:
        return False
    return True


def proxy_rows(rounds: int, seconds: float) -> list[Row]:
    """CPU per command of the proxy against the Go reference and against its own grpcio backend."""
    native = native_installed()
    with user_function() as function:
        load = Load(UNARY, seconds)
        runs = {"go": (go_peer("proxy", function), load), "grpcio": (our_proxy(function, "grpcio"), load)}
        if native:
            runs["native"] = (our_proxy(function, "native"), load)
        found = interleaved(runs, rounds)
    ours = found["native"] if native else found["grpcio"]
    name = f"proxy CPU per command ({'native engine' if native else 'grpcio backend'})"
    rows = [Row(name, ours, "µs", "Go reference proxy", found["go"], bar=1.0)]
    if native:
        rows.append(Row(name, ours, "µs", "grpcio backend", found["grpcio"], bar=0.15))
    return rows


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds, medians count (default 3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement (default 4)")
    options = parser.parse_args()
    rows: list[Row] = []
    try:
        rows += proxy_rows(options.rounds, options.seconds)
        rows += ways_in.rows(options.rounds, options.seconds, "native" if native_installed() else "grpcio")
        rows += activator_scenario.rows(options.rounds, options.seconds)
        rows += redis_journal.rows(options.rounds)
    except MissingToolchain as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows += function_process.rows(options.rounds, options.seconds, native_installed())
    rows += proxy_process.rows()
    rows += passivated.rows()
    rows += crdt_agreement.rows("native" if native_installed() else "grpcio")
    rows += autoscaler_tick.rows()
    rows += balance.rows()
    path = write("bench", rows)
    print(table([{"topic": "bench", "rows": [row.as_json() for row in rows]}]))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
