"""The pages of the documentation say what is true: their code runs as it stands there."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

HOW_TO = pathlib.Path(__file__).resolve().parents[2] / "docs/how-to"


def test_the_page_of_replicated_values(tmp_path: pathlib.Path) -> None:
    blocks = re.findall(r"```\w+\n(.*?)```", (HOW_TO / "crdt.md").read_text(), re.DOTALL)
    proto, entity, test = blocks
    (tmp_path / "presence.proto").write_text(proto)
    (tmp_path / "presence.py").write_text(entity)
    names = "import presence_pb2 as api\nfrom presence import Presence\n"
    (tmp_path / "try_it.py").write_text(f"{names}{test}\ntest_who_stays_is_seen_until_they_go()\n")
    for command in (["-m", "cloudstate_sdk.protoc", "presence.proto"], ["try_it.py"]):
        subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, timeout=120)
