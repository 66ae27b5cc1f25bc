"""The command line under test, as a process in a folder."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from kn_cloudstate.ports import free_port

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMIT = 120.0


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    return free_port()


@pytest.fixture
def running(port: int, tmp_path: pathlib.Path) -> Callable[..., AbstractContextManager[None]]:
    """`with running(FILE…)`: `kn-cloudstate run FILE…` in `tmp_path` on `port`, with its data kept there; Ctrl-C must end it well."""

    @contextlib.contextmanager
    def run(*files: str) -> Iterator[None]:
        command = [sys.executable, "-m", "kn_cloudstate", "run", *files, "--port", str(port), "--data", str(tmp_path / "data")]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk/python'}"}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert "serving default/" in process.stdout.readline()
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(LIMIT) == 0
            finally:
                process.kill()

    return run
