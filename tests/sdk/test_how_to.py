"""The pages of the documentation say what is true: their code runs as it stands there."""

from __future__ import annotations

import asyncio
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

HOW_TO = pathlib.Path(__file__).resolve().parents[2] / "docs/how-to"


@pytest.mark.parametrize(
    ("page", "proto", "module", "names"),
    [
        ("event-sourced-entity.md", "account", "accounts", "Account"),
        ("crdt.md", "presence", "presence", "Presence"),
    ],
)
def test_a_page_with_interface_entity_and_test(page: str, proto: str, module: str, names: str, tmp_path: pathlib.Path) -> None:
    interface, entity, test = re.findall(r"```\w+\n(.*?)```", (HOW_TO / page).read_text(), re.DOTALL)
    (tmp_path / f"{proto}.proto").write_text(interface)
    (tmp_path / f"{module}.py").write_text(entity)
    calls = "".join(f"{name}()\n" for name in re.findall(r"def (test_\w+)", test))
    assert calls
    (tmp_path / "try_it.py").write_text(f"import {proto}_pb2 as api\nfrom {module} import {names}\n{test}\n{calls}")
    for command in (["-m", "cloudstate_sdk.protoc", f"{proto}.proto"], ["try_it.py"]):
        subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, timeout=120)


def test_the_page_of_tests(sample: Any) -> None:
    """Its blocks on the shopping cart, in memory and under a proxy; `sample` makes `cart` importable."""
    blocks = re.findall(r"```python\n(.*?)```", (HOW_TO / "test-an-entity.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for block in (blocks[0], blocks[-1]):
        exec(block, names)
    found = [test for name, test in names.items() if name.startswith("test_")]
    assert len(found) == 4
    for test in found:
        outcome = test()
        if outcome is not None:
            asyncio.run(outcome)
