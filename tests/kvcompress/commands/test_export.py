"""`kvcompress export` on the command line; what is in the files is tested in tests/analysis/summary/test_export.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from kvcompress.cli import app
from tests.analysis.samples import write_sample
from tests.kvcompress.commands.test_bad_input import refuse


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in (0, 3):
        write_sample(tmp_path / "capture", index, prompt=16, generated=2)
    return tmp_path / "capture"


def export(*words: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["export", *map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_all_samples_beside_the_capture(folder: Path) -> None:
    told = export(folder, "--format", "npz")
    assert told["samples"] == [0, 3]
    assert told["written"] == [str(folder / f"attention_data_sample_{index}.npz") for index in (0, 3)]
    with np.load(told["written"][1]) as archive:
        assert json.loads(str(archive["summary"]))["sample"] == 3


def test_one_sample_elsewhere(folder: Path, tmp_path: Path) -> None:
    told = export(folder, "--format", "csv", "--sample", 3, "--out", tmp_path / "new" / "tables")
    assert sorted(path.name for path in (tmp_path / "new" / "tables").iterdir()) == [
        f"{name}_sample_3.csv" for name in ("attention", "events", "evictions", "tokens")
    ]
    assert told["format"] == "csv"


def test_nothing_is_overwritten_without_force(folder: Path) -> None:
    (folder / "tokens_sample_3.csv").write_text("mine")
    refuse("export", folder, "--format", "csv", words=("tokens_sample_3.csv", "--force"))
    assert not (folder / "events_sample_0.csv").exists()
    assert (folder / "tokens_sample_3.csv").read_text() == "mine"
    export(folder, "--format", "csv", "--force")
    assert (folder / "tokens_sample_3.csv").read_text().startswith("position,id,text")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--format parquet", ("--format", "npz, csv, pickle", "'parquet'")),
        ("", ("--format",)),
        ("--format npz --sample 1", ("no sample 1", "0, 3")),
        ("--format npz --sample -1", ("--sample",)),
        ("--format npz --sample last", ("--sample", "'last'")),
        ("--format pickle", ("raw attention", "--save-attention")),
    ],
)
def test_wrong_use(folder: Path, options: str, words: tuple[str, ...]) -> None:
    before = sorted(folder.iterdir())
    refuse("export", folder, *options.split(), words=words)
    assert sorted(folder.iterdir()) == before


def test_a_file_in_the_way(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refuse("export", folder, "--format", "npz", "--out", tmp_path / "file", words=("--out", "is a file"))
    refuse("export", folder, "--format", "npz", "--out", tmp_path / "file" / "x", words=("--out", "is a file"))


def test_the_help_says_what_happens_to_formulas_and_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    told = CliRunner().invoke(app, ["export", "--help"]).stdout
    assert "nothing here reads a pickle" in told
    assert "apostrophe" in told
