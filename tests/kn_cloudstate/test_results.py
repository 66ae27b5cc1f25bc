"""Measured results: whether a bar is met is computed, and every file has the one form."""

from __future__ import annotations

import json
import pathlib
import subprocess
from typing import Any

import pytest

from kn_cloudstate import results
from kn_cloudstate.results import Row, commit, main, table, write


@pytest.mark.parametrize(
    ("row", "ratio", "met"),
    [
        (Row("no bar", 5.0, "s"), None, None),
        (Row("below", 4.9, "s", bar=5), None, True),
        (Row("at the bar", 5.0, "s", bar=5), None, True),
        (Row("above", 5.1, "s", bar=5), None, False),
        (Row("zero is a bar", 0, "commands", bar=0), None, True),
        (Row("zero is missed", 1, "commands", bar=0), None, False),
        (Row("enough", 2, "pods", bar=2, sense="at least"), None, True),
        (Row("too few", 1, "pods", bar=2, sense="at least"), None, False),
        (Row("not measured", None, "s", bar=5), None, False),
        (Row("not measured, no bar", None, "s"), None, None),
        (Row("as good as its peer", 4.0, "µs", "go", 5.0, bar=1.0), 0.8, True),
        (Row("worse than its peer", 6.0, "µs", "go", 5.0, bar=1.0), 1.2, False),
        (Row("the bar is for the ratio", 0.5, "µs", "go", 0.25, bar=1.0), 2.0, False),
        (Row("peer not measured", 4.0, "µs", "go", None, bar=1.0), None, False),
        (Row("peer measured nothing", 4.0, "µs", "go", 0.0, bar=1.0), None, False),
        (Row("more than its peer", 6.0, "/s", "go", 5.0, bar=1.0, sense="at least"), 1.2, True),
        (Row("peer for the record", 4.0, "µs", "go", 5.0), 0.8, None),
    ],
    ids=lambda value: value.name if isinstance(value, Row) else "",
)
def test_whether_a_bar_is_met(row: Row, ratio: float | None, met: bool | None) -> None:
    assert row.ratio == (None if ratio is None else pytest.approx(ratio))
    assert row.met is met
    assert row.as_json()["met"] is met


def test_a_file_has_the_one_form(tmp_path: pathlib.Path) -> None:
    path = write("demo", [Row("cold_start", 1.23456, "s"), Row("cpu", 3, "µs", "go", 4, bar=1.0)], tmp_path / "new")
    assert path == tmp_path / "new/demo.json"
    content = json.loads(path.read_text())
    assert list(content) == ["topic", "commit", "machine", "rows"]
    assert (content["topic"], content["commit"]) == ("demo", commit())
    assert "cores, Python 3." in content["machine"]
    keys = ["name", "value", "unit", "peer", "peer_value", "ratio", "bar", "sense", "met"]
    assert [list(row) for row in content["rows"]] == [keys, keys]
    assert list(content["rows"][0].values()) == ["cold_start", 1.2346, "s", None, None, None, None, "at most", None]
    assert list(content["rows"][1].values()) == ["cpu", 3, "µs", "go", 4, 0.75, 1.0, "at most", True]


def test_all_files_are_one_table(tmp_path: pathlib.Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    write("b", [Row("lost", 1, "commands", bar=0)], tmp_path)
    write("a", [Row("cpu", 3.0, "µs", "go", 4.0, bar=1.0), Row("note", None, "s")], tmp_path)
    assert main() == 0
    assert capsys.readouterr().out.splitlines() == [
        "| topic | name | value | unit | peer | peer_value | ratio | bar | met |",
        "|---|---|---|---|---|---|---|---|---|",
        "| a | cpu | 3 | µs | go | 4 | 0.75 | 1 | yes |",
        "| a | note |  | s |  |  |  |  |  |",
        "| b | lost | 1 | commands |  |  |  | 0 | NO |",
    ]


def test_without_results_it_says_how_to_get_some(tmp_path: pathlib.Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert main() == 1
    assert "run `make demo` or `make bench` first" in capsys.readouterr().err


def test_a_commit_that_files_differ_from_is_marked(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert commit() == "unknown"
    (tmp_path / "a").write_text("one")
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    for arguments in (["init", "-q"], ["add", "a"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], check=True)
    clean = commit()
    assert 6 < len(clean) < 16
    (tmp_path / "a").write_text("two")
    assert commit() == clean + "+"


def test_a_table_takes_rows_that_older_files_lack() -> None:
    assert table([{"topic": "old", "rows": [{"name": "n", "value": 1.5, "unit": "s"}]}]).splitlines()[-1] == "| old | n | 1.5 | s |  |  |  |  |  |"
