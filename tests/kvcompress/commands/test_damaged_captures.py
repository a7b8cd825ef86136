"""Captures that are damaged, foreign, newer or not there: every command says so in one line and writes nothing."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from kvcompress.analysis.summary.paths import partial_name
from kvcompress.analysis.summary.reader import read_sample
from kvcompress.cli import app
from tests.analysis.samples import write_sample
from tests.kvcompress.commands.test_bad_input import refuse

DATA, SUMMARY = "attention_data_sample_0.safetensors", "attention_summary_sample_0.json"
COMMANDS: Mapping[str, Callable[[Path], tuple[object, ...]]] = {
    "samples": lambda folder: ("samples", folder),
    "analyze": lambda folder: ("analyze", folder),
    "generation": lambda folder: ("generation", folder),
    "plot": lambda folder: ("plot", folder),
    "report": lambda folder: ("report", folder),
    "export": lambda folder: ("export", folder, "--format", "npz"),
    "recommend": lambda folder: ("recommend", folder, "--no-measure"),
    "run": lambda folder: ("run", "--skip-collection", "--output-dir", folder),
}


def truncated(folder: Path) -> None:
    data = (folder / DATA).read_bytes()
    (folder / DATA).write_bytes(data[: len(data) // 2])


def foreign(folder: Path) -> None:
    save_file({"weight": torch.zeros(3)}, folder / DATA)


def foreign_of_the_same_size(folder: Path) -> None:
    size = (folder / DATA).stat().st_size
    save_file({"x": torch.zeros(4)}, folder / DATA)
    rest = size - (folder / DATA).stat().st_size
    save_file({"x": torch.zeros(4), "y": torch.zeros(rest // 2, dtype=torch.uint8)}, folder / DATA)
    with (folder / DATA).open("ab") as file:
        file.truncate(size)


def garbage(folder: Path) -> None:
    (folder / DATA).write_bytes(b"\xff" * (folder / DATA).stat().st_size)


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / DATA)
    del tensors["attention.entropy"]
    save_file(tensors, folder / DATA)
    change(folder, data_bytes=(folder / DATA).stat().st_size)


def of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / DATA)
    tensors["attention.entropy"] = tensors["attention.entropy"][:1].clone()
    save_file(tensors, folder / DATA)
    change(folder, data_bytes=(folder / DATA).stat().st_size)


def change(folder: Path, **fields: Any) -> None:
    """Change entries of the JSON."""
    content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    (folder / SUMMARY).write_text(json.dumps(content | fields), encoding="utf-8")


def without_its_data(folder: Path) -> None:
    (folder / DATA).unlink()


DAMAGES: Mapping[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated": (truncated, (DATA, "truncated or foreign")),
    "foreign": (foreign, (DATA, "truncated or foreign")),
    "foreign of the same size": (foreign_of_the_same_size, (DATA,)),
    "garbage": (garbage, (DATA, "safetensors")),
    "missing tensor": (without_a_tensor, (DATA, "attention.entropy missing")),
    "another shape": (of_another_shape, (DATA, "attention.entropy")),
    "missing data": (without_its_data, (DATA, "missing")),
    "newer": (lambda folder: change(folder, schema_version=2), ("schema version 2", "Update")),
    "another schema": (lambda folder: change(folder, schema="other"), (SUMMARY, "something else")),
    "another sample": (lambda folder: change(folder, sample=5), (SUMMARY, "sample 0")),
    "data elsewhere": (lambda folder: change(folder, data_file="../../secret"), ("data_file", "secret")),
    "a field of another type": (lambda folder: change(folder, prompt_tokens="many"), (SUMMARY, "prompt_tokens")),
    "no JSON": (lambda folder: bare(folder, b"\x80\x04pickle"), (SUMMARY, "JSON")),
    "deep JSON": (lambda folder: bare(folder, b"[" * 200_000), (SUMMARY, "JSON")),
    "empty JSON": (lambda folder: bare(folder, b""), (SUMMARY, "JSON")),
}


def bare(folder: Path, data: bytes) -> None:
    (folder / SUMMARY).write_bytes(data)


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sample(tmp_path / "capture", prompt=24, generated=4)
    return tmp_path / "capture"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_sample(folder: Path, command: str, damage: str) -> None:
    break_it, words = DAMAGES[damage]
    break_it(folder)
    before = tree(folder)
    refuse(*COMMANDS[command](folder), words=words)
    assert tree(folder) == before


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("samples", "run")])
def test_a_sample_that_is_not_there(folder: Path, command: str) -> None:
    before = tree(folder)
    for index in (1, 10**30):
        refuse(*COMMANDS[command](folder), "--sample", index, words=(f"no sample {index}", "it has 0"))
    assert tree(folder) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_folder(tmp_path: Path, command: str) -> None:
    refuse(*COMMANDS[command](tmp_path), words=("no complete sample", "kvcompress capture"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_no_folder(tmp_path: Path, command: str) -> None:
    refuse(*COMMANDS[command](tmp_path / "none"), words=("none", "kvcompress capture"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
def test_a_file_instead_of_a_folder(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("mine")
    refuse(*COMMANDS[command](tmp_path / "file"), words=("must be a folder",))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unfinished_capture(tmp_path: Path, command: str) -> None:
    (tmp_path / partial_name(0)).mkdir()
    (tmp_path / partial_name(0) / "0.bin").write_bytes(bytes(8))
    before = tree(tmp_path)
    refuse(*COMMANDS[command](tmp_path), words=("interrupted", "kvcompress capture"))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", ["analyze", "generation", "run", "recommend"])
def test_attention_that_is_not_a_number(folder: Path, command: str) -> None:
    tensors = load_file(folder / DATA)
    for name in ("entropy", "entropy_normalised", "recent_mass", "sink_mass"):
        tensors[f"attention.{name}"].fill_(float("nan"))
    tensors["attention.coverage"].fill_(float("nan"))
    save_file(tensors, folder / DATA)
    change(folder, data_bytes=(folder / DATA).stat().st_size)
    read_sample(folder)  # it is whole
    before = tree(folder)
    refuse(*COMMANDS[command](folder), words=("attention",))
    assert tree(folder) == before


@pytest.mark.parametrize("command", ["analyze", "report", "export", "recommend"])
def test_scores_that_are_not_numbers_are_nothing_special(folder: Path, command: str) -> None:
    tensors = load_file(folder / DATA)
    tensors["compression.score"].fill_(float("nan"))
    save_file(tensors, folder / DATA)
    change(folder, data_bytes=(folder / DATA).stat().st_size)
    result = CliRunner().invoke(app, [str(word) for word in COMMANDS[command](folder)])
    assert result.exit_code == 0, result.output
