"""`kn-cloudstate run` as a process, and the shopping cart as its client sees it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from kn_cloudstate.ports import free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples/shopping-cart"
CART = "/com.example.shoppingcart.ShoppingCart/"
LIMIT = 120.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait on state; what the condition gave at last."""
    deadline = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {LIMIT:g} s: {what}"
        time.sleep(0.02)
    return found


def environment(**more: str) -> dict[str, str]:
    """For a child process: the code under test, and the sample's messages."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk/python'}:{SAMPLE}", **more}


class Running:
    """An installation that serves."""

    def __init__(self, process: subprocess.Popen[str], port: int, data: pathlib.Path, said: pathlib.Path) -> None:
        self.process, self.port, self.data, self._said = process, port, data, said
        options = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)

    def call(self, path: str, request: bytes, **options: Any) -> bytes:
        """One unary call, with raw messages; a method of the cart, or a whole path."""
        method = self.channel.unary_unary(path if path.startswith("/") else CART + path)
        answer: bytes = method(request, **{"timeout": LIMIT, **options})
        return answer

    def failure(self, path: str, request: bytes) -> tuple[grpc.StatusCode, str]:
        """Status and text of a call that must fail."""
        with pytest.raises(grpc.RpcError) as error:
            self.call(path, request)
        failed: Any = error.value
        return failed.code(), failed.details()

    def said(self) -> str:
        """Standard error so far."""
        return self._said.read_text()

    def child(self, words: str) -> int:
        """The process below the installation whose command line has these words."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if words in pathlib.Path(f"/proc/{line}/cmdline").read_text().replace("\0", " "):
                    return int(line)
        raise AssertionError(f"no child runs {words}")


@pytest.fixture(scope="session")
def messages() -> Any:
    """The cart's messages."""
    sys.path.insert(0, str(SAMPLE))
    try:
        from pb.shoppingcart import shoppingcart_pb2
    finally:
        sys.path.remove(str(SAMPLE))
    return shoppingcart_pb2


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    return free_port()


@pytest.fixture
def running(port: int, tmp_path: pathlib.Path) -> Callable[..., Any]:
    """`with running(*files, data=FOLDER, **environment) as installation`: it serves, and must stop well on Ctrl-C (or have ended, with `code`)."""

    @contextlib.contextmanager
    def run(*files: Any, data: pathlib.Path = tmp_path / "data", code: int = 0, **more: str) -> Iterator[Running]:
        command = [sys.executable, "-m", "kn_cloudstate", "run", *map(str, files), "--port", str(port), "--data", str(data)]
        said = tmp_path / "stderr"
        with said.open("w") as errors:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment(**more), stdout=subprocess.PIPE, stderr=errors, text=True)
        installation = Running(process, port, data, said)
        try:
            assert process.stdout is not None
            assert "serving " in process.stdout.readline(), said.read_text()
            yield installation
        finally:
            installation.channel.close()
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(LIMIT) == code
            finally:
                process.kill()

    return run


@pytest.fixture
def refused(tmp_path: pathlib.Path) -> Callable[..., list[str]]:
    """Run the command line, which must not serve; the lines of its standard error."""

    def run(*arguments: Any, code: int = 1, prefix: Sequence[str] = (), **more: str) -> list[str]:
        command = [*prefix, sys.executable, "-m", "kn_cloudstate", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(**more), timeout=LIMIT, check=False)
        assert (done.returncode, done.stdout) == (code, ""), done
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()

    return run


@pytest.fixture
def service(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Write a Service whose function is a Python script (or any command), with annotations of the template; its file."""

    def write(script: str = "", command: str = "python function.py", annotations: Mapping[str, str] | None = None) -> pathlib.Path:
        (tmp_path / "function.py").write_text(script)
        lines = [f'        {key}: "{value}"' for key, value in (annotations or {}).items()]
        path = tmp_path / "service.yaml"
        path.write_text(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: cart, labels: {app: cart}}\nspec:\n  template:\n"
            f'    metadata:\n      annotations:\n        cloudstate.io/enabled: "true"\n        local.cloudstate.io/command: {command}\n'
            + "".join(line + "\n" for line in lines)
            + "    spec: {containers: [{image: example.com/cart}]}\n"
        )
        return path

    return write


sample = SimpleNamespace(service=SAMPLE / "service.yaml", policy=SAMPLE / "policy.yaml")


@pytest.fixture(name="sample")
def sample_files() -> Any:
    """The shopping cart's own files."""
    return sample
