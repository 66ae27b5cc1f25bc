"""`kn-cloudstate` (also found by kn as `kn cloudstate`): run stateful services on this machine."""

from __future__ import annotations

import argparse
import asyncio
import logging
import pathlib
import signal
import sys
from collections.abc import Sequence

from kn_cloudstate.local import LocalInstallation, data_folder
from kn_cloudstate.manifests import ManifestError, load
from kn_cloudstate.preconditions import StartError


def port_number(text: str) -> int:
    """A TCP port; the parser tells what is wrong otherwise."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port from 1 to 65535")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="kn-cloudstate", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the services of some YAML files on this machine, scaled from and to zero")
    run.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE", help="YAML with Services, AutoscalingPolicies and config-autoscaler")
    run.add_argument("--port", type=port_number, default=9000, help="port of the front door on 127.0.0.1 (default 9000)")
    run.add_argument("--data", type=pathlib.Path, help="folder for journal and logs (default: a new temporary one)")
    run.add_argument("--verbose", action="store_true", help="log decisions")
    return top


class PartEnded(RuntimeError):
    """The services cannot be served on."""


async def run(files: Sequence[pathlib.Path], port: int, data: pathlib.Path) -> None:
    """Run until SIGINT or SIGTERM. PartEnded when a part ends before."""
    services = load(files)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    installation = LocalInstallation(services, data, port)
    try:
        await installation.start()
        names = ", ".join(service.full_name for service in services)
        print(f"serving {names} on 127.0.0.1:{port}; journal and logs in {data}; Ctrl-C stops", flush=True)
        asked, failed = asyncio.create_task(stopped.wait()), asyncio.create_task(installation.failure())
        await asyncio.wait((asked, failed), return_when=asyncio.FIRST_COMPLETED)
        print("stopping", flush=True)
        if not stopped.is_set():
            raise PartEnded(failed.result())
        failed.cancel()
    finally:
        await installation.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 stopped as asked, 1 could not start or go on, 2 wrong use."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(options.files, options.port, data_folder(options.data)))
    except (ManifestError, StartError, PartEnded) as error:
        for problem in str(error).splitlines():
            print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
