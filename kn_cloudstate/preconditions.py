"""What must hold before a local installation starts; each breach is told as what, where and which rule, and nothing is left running."""

from __future__ import annotations

import pathlib
import shutil
import socket
import tempfile

from cloudstate_core.annotations import LOCAL_COMMAND
from kn_cloudstate.manifests import LocalService

PYTHON = ("python", "python3")
"""Programs that stand for the interpreter that runs the installation."""


class StartError(Exception):
    """The installation cannot start: says what, where and which rule."""


def require_free(port: int) -> None:
    """The front door's port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StartError(
                f"port {port} of 127.0.0.1 cannot be used ({error.strerror}): the front door needs a free one, choose it with --port"
            ) from error


def require_program(spec: LocalService) -> None:
    """The program of the command line that starts the user function is there."""
    program, at = spec.command[0], spec.folder
    if program not in PYTHON and shutil.which(at / program if "/" in program else program) is None:
        raise StartError(
            f"Service {spec.name}: annotation {LOCAL_COMMAND}: {program!r} is no program: it must be on the PATH, or a path from {at}"
        )


def require_folder(data: pathlib.Path) -> None:
    """The folder of journal and logs is there, made if need be, and takes files."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data):
            pass
    except OSError as error:
        raise StartError(f"data folder {data}: cannot be written ({error.strerror}): choose another with --data") from error
