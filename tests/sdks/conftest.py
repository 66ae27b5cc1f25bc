"""Which SDKs are tested: those that CLOUDSTATE_SDKS names, or all. One whose programs are missing is skipped here, failed in CI."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.sdks.functions import FunctionProcess
from tests.sdks.installs import SDKS


def wanted() -> list[str]:
    """Names of the SDKs to test. ValueError on an unknown one."""
    value = os.environ.get("CLOUDSTATE_SDKS", "all")
    names = list(SDKS) if value == "all" else value.split(",")
    if unknown := [name for name in names if name not in SDKS]:
        raise ValueError(f"CLOUDSTATE_SDKS={value!r}: knows no {', '.join(unknown)}; it must be 'all' or some of {', '.join(SDKS)}")
    return names


Start = Callable[[str, str], FunctionProcess]


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Start]:
    """Start the function of a name on the SDK of a name; all end with the test, which shows what they printed if it fails."""
    started: list[FunctionProcess] = []

    def start(sdk: str, name: str) -> FunctionProcess:
        missing = [program for program in SDKS[sdk].programs if shutil.which(program) is None]
        if missing and os.environ.get("CI"):
            pytest.fail(f"{', '.join(missing)}: not installed, must be where CI runs")
        if missing:
            pytest.skip(f"{', '.join(missing)}: not installed here; with CI set this is a failure")
        process = FunctionProcess(SDKS[sdk], name, tmp_path / f"{sdk}-{name}.log")
        started.append(process)
        return process.start()

    yield start
    for process in started:
        process.stop()
        print(process.output()[-6000:])
