"""The how-to for a first entity, word for word: its files, its commands, its client, in an empty folder."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMIT = 120.0


def blocks(path: str, language: str) -> list[str]:
    """The code blocks of a document in one language, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", (ROOT / path).read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def test_the_how_to_works_as_written(tmp_path: pathlib.Path, port: int, running: Any) -> None:
    how_to = "docs/how-to/first-entity.md"
    (tmp_path / "counter.proto").write_text(blocks(how_to, "proto")[0])
    (tmp_path / "counter.py").write_text(blocks("sdk/python/README.md", "python")[0])
    (tmp_path / "service.yaml").write_text(blocks(how_to, "yaml")[0])
    (tmp_path / "client.py").write_text(blocks(how_to, "python")[0].replace("127.0.0.1:9000", f"127.0.0.1:{port}"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "sdk/python")}

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("-m", "cloudstate_sdk.protoc", "counter.proto")
    with running("service.yaml"):
        assert python("client.py") == "2\n"
        assert python("client.py") == "4\n"
    with running("service.yaml"):
        assert python("client.py") == "6\n"
