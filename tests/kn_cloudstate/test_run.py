"""What `kn-cloudstate run` says, and with which exit code, when it cannot start what it was given; and when pods cannot run."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from cloudstate_core.journal.sqlite import SqliteJournal
from tests.disks import small_disk
from tests.kn_cloudstate.conftest import LIMIT, until

MUTE = """
import os, socket
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
held = []
while True:
    held.append(server.accept())
"""
NO_ENTITY = """
from cloudstate_sdk import Function
Function().run()
"""


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_wrong_annotations_and_policy_fields_and_missing_files_are_told_together(refused: Any, service: Any, tmp_path: pathlib.Path) -> None:
    path = service(annotations={"cloudstate.io/shard": "8"})
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "apiVersion: autoscaling.cloudstate.io/v1alpha1\nkind: AutoscalingPolicy\nmetadata: {name: cart}\n"
        "spec: {windows: {stabel: 60s}, scale: {min: 5, max: 4}}\n"
    )
    first, second, third, fourth = refused("run", path, policy, "missing.yaml")
    assert first == (
        f"error: {policy}: AutoscalingPolicy cart: spec.windows.stabel: is not a field; "
        "fields of spec.windows are stable, panicPercentage, panicThreshold, aggregation"
    )
    assert second == f"error: {policy}: AutoscalingPolicy cart: spec.scale.min: 5 must not be above spec.scale.max (4)"
    assert third == "error: missing.yaml: cannot be read: No such file or directory"
    assert fourth.startswith(f"error: {path}: Service cart: annotation cloudstate.io/shard: no such key (its value is '8'); the keys are ")
    assert not list(tmp_path.glob("data*")), "nothing was started"


def test_a_port_in_use_is_told(refused: Any, sample: Any, taken: int) -> None:
    assert refused("run", sample.service, "--port", taken) == [
        f"error: port {taken} of 127.0.0.1 cannot be used (Address already in use): the front door needs a free one, choose it with --port"
    ]


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_that_is_none_is_wrong_use(refused: Any, sample: Any, port: str) -> None:
    assert refused("run", sample.service, "--port", port, code=2)[-1].endswith(f"argument --port: '{port}' must be a port from 1 to 65535")


def test_a_program_that_is_not_there_is_told(refused: Any, service: Any, port: int, tmp_path: pathlib.Path) -> None:
    assert refused("run", service(command="./nosuch --fast"), "--port", port) == [
        "error: Service cart: annotation local.cloudstate.io/command: './nosuch' is no program: "
        f"it must be on the PATH, or a path from {tmp_path}"
    ]


def test_a_data_folder_that_is_a_file_is_told(refused: Any, sample: Any, port: int, tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes").write_text("mine")
    (line,) = refused("run", sample.service, "--port", port, "--data", tmp_path / "notes")
    assert line == f"error: data folder {tmp_path / 'notes'}: cannot be written (File exists): choose another with --data"
    assert (tmp_path / "notes").read_text() == "mine"


def without_override() -> list[str]:
    """Begins a command line of somebody whom file permissions bind, as they do not bind root."""
    if os.geteuid() != 0:
        return []
    program = shutil.which("setpriv")
    assert program, "setpriv (util-linux) is not installed"
    return [program, "--bounding-set=-dac_override", "--inh-caps=-dac_override"]


def test_a_read_only_journal_is_told(refused: Any, sample: Any, port: int, tmp_path: pathlib.Path) -> None:
    journal = tmp_path / "journal.db"
    SqliteJournal(str(journal), "default/cart", 256).close()
    journal.chmod(0o444)
    (line,) = refused("run", sample.service, "--port", port, "--data", tmp_path, prefix=without_override())
    assert line.startswith(f"error: journal {journal}: cannot be written (")
    assert line.endswith("): the file and its folder must be writable")


def test_a_read_only_data_folder_is_told(refused: Any, sample: Any, port: int, tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").mkdir(mode=0o555)
    (line,) = refused("run", sample.service, "--port", port, "--data", tmp_path / "data", prefix=without_override())
    assert line == f"error: data folder {tmp_path / 'data'}: cannot be written (Permission denied): choose another with --data"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"these are my notes, and they are not a database" * 100, "journal {path}: file is not a database"),
        (None, "journal {path}, keyspace default/cart: has 8 shards, hash "),
    ],
    ids=["another file", "another number of shards"],
)
def test_a_journal_that_is_another_is_told(refused: Any, sample: Any, port: int, tmp_path: pathlib.Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "journal.db"
    if content is None:
        SqliteJournal(str(path), "default/cart", 8).close()
    else:
        path.write_bytes(content)
    (line,) = refused("run", sample.service, "--port", port, "--data", tmp_path)
    assert line.startswith("error: " + says.format(path=path))
    assert content is None or path.read_bytes() == content


def test_a_journal_that_somebody_else_has_open_is_told(refused: Any, sample: Any, port: int, tmp_path: pathlib.Path) -> None:
    journal = SqliteJournal(str(tmp_path / "journal.db"), "default/cart", 256)
    (line,) = refused("run", sample.service, "--port", port, "--data", tmp_path)
    journal.close()
    assert line.endswith("another process has it open: one process opens it and serves it to the others")


def test_a_full_disk_is_told_at_the_start(refused: Any, sample: Any, port: int, tmp_path: pathlib.Path) -> None:
    with small_disk(tmp_path / "disk", "device") as disk:
        disk.fill()
        lines = refused("run", sample.service, "--port", port, "--data", disk.folder)
        disk.make_room()
    if disk.mounted:
        assert lines == [f"error: journal {disk.folder}/journal.db: cannot be written (database or disk is full): make room, and writing goes on"]
    assert f"error: journal {disk.folder}/journal.db: " in lines[-1]


def test_a_function_that_ends_is_told_with_its_last_words_and_replaced_ever_more_slowly(running: Any, service: Any) -> None:
    script = "import os, sys\nprint('no cart today')\nsys.exit(3)\n"
    with running(service(script), CLOUDSTATE_LOG="ERROR") as installation:
        future = installation.channel.unary_unary("/a.B/C").future(b"", timeout=60)
        # on a busy machine a pod may be told to be late before its function has ended
        lines = until(lambda: len(found := [line for line in installation.said().splitlines() if " ended " in line]) >= 4 and found, "four pods")
        future.cancel()
    for number, line in enumerate(lines[:4], 1):
        assert f"pod cart-00001-000{number}: its user function ended unasked with exit code 3, and the pod is taken down: no cart today" in line
        assert line.endswith(f"(log: {installation.data}/cart-00001-000{number}.log)")


@pytest.mark.parametrize(
    ("script", "says"),
    [(MUTE, "has not answered discovery yet"), (NO_ENTITY, "the function serves no entity: EntitySpec.entities must have at least one")],
    ids=["mute", "no entity"],
)
def test_a_pod_that_does_not_become_ready_is_told_with_the_reason(running: Any, service: Any, script: str, says: str) -> None:
    with running(service(script), CLOUDSTATE_TRANSPORT="auto") as installation:
        future = installation.channel.unary_unary("/a.B/C").future(b"", timeout=60)
        said = until(lambda: "is not ready after" in (found := installation.said()) and found, "it is told")
        future.cancel()
    assert "pod cart-00001-0001: is not ready after 5 s: " in said
    assert says in said or "discovery failed" in said


@pytest.mark.parametrize(("words", "part"), [("kn_cloudstate.journal_host", "journal"), ("-m activator", "activator")])
def test_a_part_that_ends_is_told_and_ends_the_rest(running: Any, sample: Any, words: str, part: str) -> None:
    with running(sample.service, code=1) as installation:
        os.kill(installation.child(words), signal.SIGKILL)
        installation.process.wait(LIMIT)
        assert installation.process.stdout.read() == "stopping\n"
    assert f"error: {part}: ended unasked with exit code -9: " in installation.said()
    assert installation.said().splitlines()[-1].endswith(f"(log: {installation.data}/{part}.log)")
