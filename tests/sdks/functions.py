"""Functions on published SDKs as child processes, and the messages that they take."""

from __future__ import annotations

import functools
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from kn_cloudstate.ports import free_port
from tests.sdks.installs import GOOGLE_APIS, HERE, Sdk, installed

PATIENCE = 180.0
"""Seconds in which a function must take connections: a virtual machine that shares two busy cores needs some."""


class FunctionProcess:
    """One function on an SDK. It keeps its port over a restart."""

    def __init__(self, sdk: Sdk, name: str, log: pathlib.Path) -> None:
        self.sdk, self.name, self.log = sdk, name, log
        self.folder, self.port = installed(sdk), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> FunctionProcess:
        """Start it, and wait until it listens."""
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOST": "127.0.0.1", "PORT": str(self.port)}
        command = self.sdk.command(self.name)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self._listens():
            assert self.process.poll() is None, f"{self.sdk.name}/{self.name} ended: {self.output()[-3000:]}"
            assert time.monotonic() < deadline, f"{self.sdk.name}/{self.name} does not listen: {self.output()[-3000:]}"
            time.sleep(0.05)
        return self

    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it, at once unless told otherwise."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(PATIENCE)
            self.process = None

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    with tempfile.NamedTemporaryFile() as made:
        includes = [f"-I{HERE / 'proto'}", f"-I{HERE / 'python/options'}", f"-I{GOOGLE_APIS}"]
        files = sorted(str(path.relative_to(HERE / "proto")) for path in (HERE / "proto").rglob("*.proto"))
        command = [sys.executable, "-m", "grpc_tools.protoc", *includes, "--include_imports", f"--descriptor_set_out={made.name}", *files]
        subprocess.run(command, check=True)
        files_of_set = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(made.name).read_bytes()).file
    pool = descriptor_pool.DescriptorPool()
    for file in files_of_set:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@functools.cache
def message(name: str) -> Any:
    """The class of a message that these functions take or give, such as `Add`."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"shop.{name}"))
