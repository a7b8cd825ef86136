"""Files of a capture: what is written is read; what is damaged, foreign or newer is refused; nothing is half there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.paths import data_name, partial_indices, summary_name
from kvcompress.analysis.summary.reader import list_samples, read_sample
from kvcompress.analysis.summary.schema import COMPRESSION_TENSORS, REQUIRED_TENSORS
from kvcompress.analysis.summary.writer import SampleWriter
from tests.analysis.samples import write_sample


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with samples 0 and 2."""
    folder = tmp_path_factory.mktemp("capture")
    for index in (0, 2):
        write_sample(folder, index, tokens=["<script>", "é", "漢", "\n", *[f"t{i}" for i in range(52)]])
    return folder


@pytest.fixture
def copy(capture: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(capture, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes sample 0's JSON."""
    path = folder / summary_name(0)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_all_tensors_of_the_schema_are_there_and_any_reader_of_safetensors_reads_them(capture: Path) -> None:
    sample = read_sample(capture)
    assert set(sample.names) == {*REQUIRED_TENSORS, *COMPRESSION_TENSORS}
    assert list_samples(capture) == [0, 2]
    plain = load_file(capture / data_name(0))
    for name in sample.names:
        torch.testing.assert_close(sample.tensor(name), plain[name], rtol=0, atol=0, equal_nan=True)
    with safe_open(capture / data_name(0), framework="pt") as file:
        assert file.metadata() == {"schema": "kvcompress.capture", "schema_version": "1"}


def test_every_tensor_of_the_schema_is_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    missing = [name for name in (*REQUIRED_TENSORS, *COMPRESSION_TENSORS) if f"`{name}`" not in text]
    assert not missing


def test_texts_survive(capture: Path) -> None:
    tokens = read_sample(capture).summary.tokens
    assert tokens is not None
    assert tokens[:4] == ("<script>", "é", "漢", "\n")


def test_nothing_but_the_samples_is_in_the_folder(capture: Path) -> None:
    expected = {data_name(0), summary_name(0), data_name(2), summary_name(2)}
    assert {path.name for path in capture.iterdir()} == expected


@given(
    rows=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64]),
    width=st.integers(0, 3),
)
def test_appended_rows_are_the_concatenation(
    rows: list[int], dtype: torch.dtype, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    writer = SampleWriter(folder, 0)
    blocks = [(torch.randn(n, width) * 100).to(dtype) for n in rows]
    for block in blocks:
        writer.append("a", block)
        writer.append("b", block.T.contiguous().T)  # of other strides
    writer.append("c", torch.arange(3))
    for column in writer._columns.values():
        column.file.close()
    writer._write_safetensors(folder / "x.safetensors")
    loaded = load_file(folder / "x.safetensors")
    for name in ("a", "b"):
        assert torch.equal(loaded[name], torch.cat(blocks))
    assert loaded["c"].tolist() == [0, 1, 2]


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, 0)
    writer.append("a", torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"rows of a must be"):
        writer.append("a", torch.zeros(1, 3))
    writer.discard()


def test_a_sample_without_its_tensors_is_not_written(tmp_path: Path) -> None:
    sample = write_sample(tmp_path / "whole")
    writer = SampleWriter(tmp_path / "part", 0)
    for name in REQUIRED_TENSORS:
        if name != "attention.entropy":
            writer.append(name, sample.tensor(name))
    fields = sample.summary.model_dump(mode="json") | {"policy": None}
    with pytest.raises(ValueError, match=r"attention\.entropy missing"):
        writer.finish(fields)
    assert list_samples(tmp_path / "part") == []


def test_a_capture_that_was_cut_off_leaves_its_folder_and_the_next_removes_it(tmp_path: Path) -> None:
    writer = SampleWriter(tmp_path, 0)
    writer.append("a", torch.zeros(3))
    for column in writer._columns.values():  # the process dies
        column.file.close()
    assert partial_indices(tmp_path) == [0]
    with pytest.raises(SummaryError, match="interrupted"):
        read_sample(tmp_path)
    write_sample(tmp_path)
    assert partial_indices(tmp_path) == []
    assert list_samples(tmp_path) == [0]


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no-json": (lambda f: (f / summary_name(0)).unlink(), "has no sample 0; it has 2"),
    "json-cut": (lambda f: (f / summary_name(0)).write_text('{"schema": "kvcom'), "must be JSON"),
    "json-nested": (lambda f: (f / summary_name(0)).write_text("[" * 200_000), "must be JSON"),
    "json-list": (lambda f: (f / summary_name(0)).write_text("[]"), "something else"),
    "json-not-utf8": (lambda f: (f / summary_name(0)).write_bytes(b"\xff\xfe{}"), "must be JSON"),
    "foreign": (lambda f: edit(f, lambda c: c.update(schema="other")), "something else"),
    "newer": (lambda f: edit(f, lambda c: c.update(schema_version=2)), "Update kvcompress"),
    "version-text": (lambda f: edit(f, lambda c: c.update(schema_version="1")), "schema_version"),
    "no-model": (lambda f: edit(f, lambda c: c.pop("model")), "model"),
    "negative": (lambda f: edit(f, lambda c: c["model"].update(layers=-1)), "layers"),
    "other-index": (lambda f: edit(f, lambda c: c.update(sample=5)), "must describe sample 0"),
    "no-data": (lambda f: (f / data_name(0)).unlink(), "is missing"),
    "data-cut": (lambda f: (f / data_name(0)).write_bytes((f / data_name(0)).read_bytes()[:-1]), "truncated"),
    "data-foreign": (lambda f: _replace(f, b"PK\x03\x04"), "safetensors"),
    "escaping-name": (lambda f: edit(f, lambda c: c.update(data_file="../x.safetensors")), "data_file"),
    "tensor-missing": (lambda f: edit(f, lambda c: c["tensors"].pop("attention.entropy")), r"attention\.entropy"),
    "tensor-shape": (lambda f: edit(f, lambda c: c["tensors"]["attention.entropy"].update(shape=[1])), "must be F32"),
    "tensor-unknown": (lambda f: edit(f, lambda c: c["tensors"].update(x={"dtype": "F32", "shape": []})), "x is no"),
    "raw-heads": (lambda f: edit(f, lambda c: c["tensors"].update(_raw(3))), "raw_heads"),
    "header-differs": (lambda f: _other_tensors(f), "missing"),
}


def _raw(heads: int) -> dict[str, Any]:
    return {"raw.attention.0.0": {"dtype": "F32", "shape": [heads, 4, 4]}}


def _replace(folder: Path, begin: bytes) -> None:
    path = folder / data_name(0)
    path.write_bytes(begin + path.read_bytes()[len(begin) :])


def _other_tensors(folder: Path) -> None:
    save_file({"a": torch.zeros(3)}, folder / data_name(0))
    edit(folder, lambda content: content.update(data_bytes=(folder / data_name(0)).stat().st_size))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_clear_line(damage: str, copy: Path) -> None:
    change, message = DAMAGE[damage]
    change(copy)
    with pytest.raises(SummaryError, match=message) as caught:
        read_sample(copy)
    assert "\n" not in str(caught.value)
    assert read_sample(copy, 2).events > 0  # the other sample is as good as before


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_no_capture_says_what_to_do(folder: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SummaryError, match="kvcompress capture"):
        read_sample(tmp_path / folder)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SummaryError, match="can be written"):
        SampleWriter(tmp_path / "file", 0)


def test_held_tokens_follow_from_the_evictions(capture: Path) -> None:
    sample = read_sample(capture)
    evicted = sample.tensor("compression.evicted_event")
    for event in (0, 3, sample.events - 1):
        tokens = int(sample.tensor("event.tokens")[event])
        held = sample.held(event)
        assert held.sum(-1).tolist() == sample.tensor("compression.held")[event].tolist()
        assert not held[..., tokens:].any()
        assert not held[(evicted >= 0) & (evicted <= event)].any()
    with pytest.raises(ValueError, match="event must be between"):
        sample.held(sample.events)


def test_an_uncompressed_sample_holds_everything(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, compressed=False, layers=1, generated=2)
    assert not sample.compressed
    assert sample.held(1).sum().item() == 2 * 49
