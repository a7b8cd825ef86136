"""Rows on disk: what is written is read, whatever cuts the file off, and nothing else is taken for rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcompress.bench.sweep.row import SCHEMA, Row, from_line, to_line
from kvcompress.bench.sweep.rows_file import RowsFile, read_rows
from tests.bench.sweep.rows import make_row, sweep_rows

NAMES = st.text(max_size=20)


def changed(**changes: Any) -> str:
    """A line with other values; None removes nothing, it is a value."""
    return json.dumps({**json.loads(to_line(make_row())), **changes}) + "\n"


@given(
    policy=NAMES,
    task=NAMES,
    size=st.none() | st.integers(0, 10**6),
    ratio=st.none() | st.floats(0, 1),
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    kl=st.floats(0, 100),
    commit=st.none() | NAMES,
)
def test_what_is_written_is_read(
    policy: str, task: str, size: int | None, ratio: float | None, scores: list[float], kl: float, commit: str | None
) -> None:
    row = make_row((1.0,) * len(scores), cache_size=size, ratio=ratio, policy=policy, task=task)
    row = replace(row, scores=tuple(scores), kl=kl, commit=commit)
    line = to_line(row)
    assert line.count("\n") == 1
    assert from_line(line) == row


@given(cut=st.integers(0, 10**9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_file_cut_anywhere_keeps_every_finished_row(tmp_path: Path, cut: int) -> None:
    rows = sweep_rows()[:3]
    content = "".join(map(to_line, rows)).encode()
    kept = content[: cut % (len(content) + 1)]
    path, notes = tmp_path / "rows.jsonl", list[str]()
    path.write_bytes(kept)
    whole = kept.count(b"\n")
    with RowsFile(path, notes.append) as file:
        assert list(file.rows.values()) == rows[:whole]
        for row in rows[whole:]:
            file.append(row)
    assert path.read_bytes() == content
    assert len(notes) == (not kept.endswith(b"\n") and kept != b"")


def test_row_is_on_disk_before_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    with RowsFile(path, pytest.fail) as file:
        file.append(make_row())
        assert read_rows(path) == [make_row()]


def test_later_row_of_a_cell_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(to_line(make_row(kl=1.0)) + to_line(make_row(kl=2.0)))
    assert [row.kl for row in read_rows(path)] == [2.0]


def test_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowsFile(path, pytest.fail), pytest.raises(ValueError, match="being written by another sweep"):
        RowsFile(path, pytest.fail)


def test_nothing_is_left_where_nothing_ran(tmp_path: Path) -> None:
    with RowsFile(tmp_path / "rows.jsonl", pytest.fail):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n", "line 1 is no JSON"),
        ('{"schema": "kvcompress.bench/1"}\n', "line 1 is no row of a sweep"),
        ("[1]\n", "line 1 is no row"),
        ("7", "not the file of a sweep"),
        (to_line(make_row()) + "\n", "line 2 is no JSON"),
        (to_line(make_row()) + '{"schema"\n', "line 2 is no JSON"),
        (changed(schema="kvcompress.bench.sweep/2"), "sweep/2.*reads.*sweep/1"),
        (changed(score="good"), "no usable score"),
        (changed(score=1.5), "no usable score"),
        (changed(kv_bytes=-1), "no usable kv_bytes"),
        (changed(ci95=[0.9, 0.1]), "no usable ci95"),
        (changed(n=True), "no usable n"),
        (changed(scores=[1.0]), "1 scores of 4 samples"),
        (changed(layer_tokens=None, ttft="x"), "no usable .*ttft.*layer_tokens|no usable .*layer_tokens.*ttft"),
        (json.dumps({"schema": SCHEMA}) + "\n", "no usable policy, task"),
        ("\udcff\n", "line 1"),
    ],
)
def test_what_is_no_rows_file_is_named_and_left_alone(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content.encode(errors="surrogateescape"))
    before = path.read_bytes()
    for read in (lambda: read_rows(path), lambda: RowsFile(path, pytest.fail)):
        with pytest.raises(ValueError, match=words) as caught:
            read()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_no_rows_and_no_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="holds no rows"):
        read_rows(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="cannot be read"):
        read_rows(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="cannot be written"):
        RowsFile(tmp_path, pytest.fail)


@pytest.mark.parametrize("field", [name for name in Row.__dataclass_fields__ if name != "cell"])
def test_row_that_lacks_anything_is_damaged(field: str) -> None:
    content = json.loads(to_line(make_row()))
    del content[field]
    with pytest.raises(ValueError, match=f"no usable {field}"):
        from_line(json.dumps(content))
