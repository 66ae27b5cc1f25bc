"""The golden tables of Knative's decisions; KNATIVE_GOLDEN names another file with the same schema."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

GOLDEN = pathlib.Path(os.environ.get("KNATIVE_GOLDEN", pathlib.Path(__file__).parent.parent / "data/knative_golden.json"))


def pytest_generate_tests(metafunc: Any) -> None:
    """A test marked `golden("table")` runs once for each row of the table, as its argument `row`."""
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is not None:
        rows = json.loads(GOLDEN.read_text())[marker.args[0]]["cases"]
        metafunc.parametrize("row", rows, ids=[str(row.get("name") or row.get("n") or n) for n, row in enumerate(rows)])
