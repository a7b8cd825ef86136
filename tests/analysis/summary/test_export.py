"""Samples as npz, CSV and pickle: everything that is in them, exactly, and nothing that can run."""

import csv
import io
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvcompress.analysis.capture.raw import RawRequest
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.summary.csv_tables import write_table
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.export import export_paths, export_sample, whole_attention
from kvcompress.analysis.summary.reader import Sample
from tests.analysis.samples import write_sample

PROMPT, GENERATED = 20, 3


@pytest.fixture
def compressed(tmp_path: Path) -> Sample:
    return write_sample(tmp_path / "capture", prompt=PROMPT, generated=GENERATED)


@pytest.fixture
def raw(tmp_path: Path) -> Sample:
    settings = RecorderSettings(raw=RawRequest(), save_kv=True)
    folder = tmp_path / "raw"
    return write_sample(folder, 2, compressed=False, prompt=PROMPT, generated=GENERATED, settings=settings)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class TestNpz:
    def test_holds_every_tensor_and_the_json(self, raw: Sample, tmp_path: Path) -> None:
        (path,) = export_sample(raw, "npz", tmp_path / "out")
        assert path == tmp_path / "out" / "attention_data_sample_2.npz"
        with np.load(path, allow_pickle=False) as archive:
            assert set(archive.files) == {"summary", *raw.names}
            for name in raw.names:
                want = raw.tensor(name)
                got = archive[name]
                assert got.dtype == want.numpy().dtype
                np.testing.assert_array_equal(got, want.numpy())
            told = json.loads(str(archive["summary"]))
        assert told == json.loads((raw.folder / "attention_summary_sample_2.json").read_text(encoding="utf-8"))

    def test_text_of_any_kind(self, tmp_path: Path) -> None:
        tokens = ["漢字", "🐙", "\x00", "\ud800", *("a" * n for n in range(7))]
        sample = write_sample(tmp_path, prompt=8, generated=3, tokens=[*tokens[:3], "b", *tokens[4:]])
        (path,) = export_sample(sample, "npz", tmp_path)
        with np.load(path, allow_pickle=False) as archive:
            assert json.loads(str(archive["summary"]))["tokens"][:3] == tokens[:3]


class TestCsv:
    def test_has_an_eviction_table_where_something_was_evicted(self, compressed: Sample, raw: Sample) -> None:
        names = [path.name for path in export_paths(compressed, "csv", Path())]
        assert names == [f"{name}_sample_0.csv" for name in ("events", "attention", "tokens", "evictions")]
        assert len(export_paths(raw, "csv", Path())) == 3

    def test_events(self, compressed: Sample, tmp_path: Path) -> None:
        table = rows(export_sample(compressed, "csv", tmp_path)[0])
        assert [row["kind"] for row in table] == ["prefill"] + ["decode"] * GENERATED
        assert [int(row["tokens"]) for row in table] == [PROMPT + step for step in range(GENERATED + 1)]
        held = compressed.tensor("compression.held").double().mean((1, 2)).tolist()
        assert [float(row["held_per_head"]) for row in table] == held
        assert [int(row["bytes"]) for row in table] == compressed.tensor("compression.bytes").tolist()

    def test_attention_is_exact(self, compressed: Sample, tmp_path: Path) -> None:
        table = rows(export_sample(compressed, "csv", tmp_path)[1])
        events, layers, heads = compressed.tensor("attention.entropy").shape
        assert len(table) == events * layers * heads
        for name in ("entropy", "sink_mass", "learned_sink_mass"):
            got = torch.tensor([float(row[name]) for row in table]).view(events, layers, heads)
            torch.testing.assert_close(got, compressed.tensor(f"attention.{name}"), rtol=0, atol=0)
        got = torch.tensor([float(row["coverage_95"]) for row in table]).view(events, layers, heads)
        torch.testing.assert_close(got, compressed.tensor("attention.coverage")[..., 3], rtol=0, atol=0)
        places = [(int(row["event"]), int(row["layer"]), int(row["head"])) for row in table]
        assert places == sorted(set(places))

    def test_tokens(self, compressed: Sample, tmp_path: Path) -> None:
        table = rows(export_sample(compressed, "csv", tmp_path)[2])
        assert [row["text"] for row in table] == [f"t{i}" for i in range(PROMPT + GENERATED)]
        assert [row["part"] for row in table] == ["prompt"] * PROMPT + ["generated"] * GENERATED
        want = compressed.tensor("token.influence").double().mean(0).tolist()
        assert [float(row["influence"]) for row in table] == want

    def test_evictions(self, compressed: Sample, tmp_path: Path) -> None:
        table = rows(export_sample(compressed, "csv", tmp_path)[3])
        held = compressed.held(compressed.events - 1)
        assert [row["fate"] == "held" for row in table] == held.flatten().tolist()
        assert [row["evicted_event"] == "" for row in table] == held.flatten().tolist()
        scores = compressed.tensor("compression.score").flatten().tolist()
        for row, score in zip(table, scores, strict=True):
            assert row["score"] == "" if math.isnan(score) else float(row["score"]) == score

    def test_no_text_becomes_a_formula(self, tmp_path: Path) -> None:
        hostile = [
            "=1+1",
            "+1",
            "-1",
            "@SUM(A1)",
            "\t=1",
            "\r=1",
            "=cmd|' /C calc'!A0",
            'a"b,c\nd',
            "<script>",
            "é漢🐙",
            "'",
        ]
        sample = write_sample(tmp_path, prompt=8, generated=3, tokens=hostile)
        table = rows(export_sample(sample, "csv", tmp_path)[2])
        for row, text in zip(table, hostile, strict=True):
            assert row["text"] == ("'" + text if text[0] in "=+-@\t\r" else text)
            assert row["text"][0] not in "=+-@\t\r"
        assert all(float(row["influence"]) >= 0 for row in table)

    def test_numbers_keep_their_sign(self, tmp_path: Path) -> None:
        write_table(tmp_path / "t.csv", [("a", "b", "c", "d"), (-1, -2.5, float("nan"), None)])
        assert (tmp_path / "t.csv").read_bytes() == b"a,b,c,d\r\n-1,-2.5,,\r\n"


class OnlyNumpy(pickle.Unpickler):
    """Reads what a pickle of arrays needs, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] != "numpy":
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


class TestPickle:
    def test_has_the_form_of_the_earlier_tool(self, raw: Sample, tmp_path: Path) -> None:
        (path,) = export_sample(raw, "pickle", tmp_path)
        found = OnlyNumpy(io.BytesIO(path.read_bytes())).load()
        tokens = PROMPT + GENERATED
        assert list(found) == [0, 1, 2]
        for layer, entry in found.items():
            assert set(entry) == {"shape", "tensor"}
            assert entry["shape"] == entry["tensor"].shape == (1, 4, tokens, tokens)
            np.testing.assert_array_equal(entry["tensor"][0], whole_attention(raw, layer).numpy())

    def test_rows_are_those_of_the_events(self, raw: Sample) -> None:
        whole = whole_attention(raw, 1)
        torch.testing.assert_close(whole[:, :PROMPT, :PROMPT], raw.raw_attention(0, 1), rtol=0, atol=0)
        for step in range(GENERATED):
            row = whole[:, PROMPT + step, : PROMPT + step + 1]
            torch.testing.assert_close(row, raw.raw_attention(1 + step, 1)[:, 0], rtol=0, atol=0)
        assert whole.triu(1).count_nonzero() == 0
        torch.testing.assert_close(whole.sum(-1), torch.ones(4, PROMPT + GENERATED))

    def test_needs_raw_attention(self, compressed: Sample, tmp_path: Path) -> None:
        with pytest.raises(SummaryError, match="--save-attention"):
            export_sample(compressed, "pickle", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        with pytest.raises(SummaryError, match="layer 0"):
            whole_attention(compressed, 0)


def test_another_format_is_refused(compressed: Sample, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="npz, csv, pickle"):
        export_sample(compressed, "parquet", tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["npz", "csv", "pickle"])
def test_nothing_half_written_stays(raw: Sample, tmp_path: Path, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export_sample(raw, form, out)
    assert list(out.iterdir()) == []
