"""LongBench and RULER from small files in their own schemas."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvcompress.bench.data_source import hub_rows, read_text
from kvcompress.bench.tasks.longbench import SUBSETS, LongBench
from kvcompress.bench.tasks.ruler import Ruler


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def longbench_row(**changed: Any) -> dict[str, Any]:
    return {
        "input": "Who wrote {it}?",
        "context": "word " * 200 + "Ann wrote {it}. " + "word " * 200,
        "answers": ["Ann", "Ann B."],
        "length": 400,
        "dataset": "qasper",
        "language": "en",
        "all_classes": None,
        "_id": "0",
    } | changed


@pytest.mark.parametrize("subset", SUBSETS)
def test_longbench_asks_after_the_context(subset: str, tmp_path: Path, byte_tokenizer: Any) -> None:
    source = write(tmp_path / "rows.jsonl", longbench_row(answers=["12"], all_classes=["12", "13"]))
    sample = LongBench(subset=subset, source=source).sample(byte_tokenizer, 4000, 0)
    assert "Ann wrote {it}." in sample.context
    assert "wrote {it}." not in sample.turns[0].question
    if "{input}" in SUBSETS[subset].prompt:
        assert "Who wrote {it}?" in sample.turns[0].question
    assert sample.judge(0, "12") == 1
    assert sample.turns[0].max_new_tokens == SUBSETS[subset].max_new_tokens


def test_longbench_cuts_the_middle(tmp_path: Path, byte_tokenizer: Any) -> None:
    source = write(tmp_path / "rows.jsonl", longbench_row(context="a" * 900 + "b" * 900))
    whole = LongBench(subset="qasper", source=source).sample(byte_tokenizer, 4000, 0)
    cut = LongBench(subset="qasper", source=source).sample(byte_tokenizer, 1000, 0)
    kept = len(cut.context_ids)
    assert cut.prompt_tokens == 1000
    assert cut.turns == whole.turns
    assert cut.context_ids == whole.context_ids[: kept - kept // 2] + whole.context_ids[-(kept // 2) :]
    with pytest.raises(ValueError, match="length must leave room for the context of 'longbench/qasper'"):
        LongBench(subset="qasper", source=source).sample(byte_tokenizer, 20, 0)


def test_longbench_takes_the_benchmarks_own_prompts(tmp_path: Path, byte_tokenizer: Any) -> None:
    source = write(tmp_path / "rows.jsonl", longbench_row())
    prompts = tmp_path / "dataset2prompt.json"
    prompts.write_text(json.dumps({"qasper": "Paper: {context}\nQ: {input}\nA:", "trec": "{input} {context}"}))
    sample = LongBench(subset="qasper", source=source, prompts=prompts).sample(byte_tokenizer, 4000, 0)
    assert sample.context.startswith("Paper: word")
    assert sample.turns[0].question == "\nQ: Who wrote {it}?\nA:"
    with pytest.raises(ValueError, match="must ask after"):
        LongBench(subset="trec", source=source, prompts=prompts).sample(byte_tokenizer, 4000, 0)
    with pytest.raises(ValueError, match=r"must have a prompt with .* for 'lcc'"):
        LongBench(subset="lcc", source=source, prompts=prompts).sample(byte_tokenizer, 4000, 0)


def test_first_line_alone_is_judged_where_the_benchmark_does(tmp_path: Path, byte_tokenizer: Any) -> None:
    source = write(tmp_path / "rows.jsonl", longbench_row(answers=["Ann"], all_classes=["Ann", "Bob"]))
    sample = LongBench(subset="trec", source=source).sample(byte_tokenizer, 4000, 0)
    assert sample.judge(0, "\nAnn\nQuestion: Bob") == 1
    assert sample.judge(0, "Ann or Bob") == 0.5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "x"}, "sample 0 must have a str in 'context'; got NoneType"),
        (longbench_row(answers="Ann"), "sample 0 must have a list in 'answers'; got str"),
    ],
)
def test_wrong_columns_are_named(row: dict[str, Any], message: str, tmp_path: Path, byte_tokenizer: Any) -> None:
    source = write(tmp_path / "rows.jsonl", row)
    with pytest.raises(ValueError, match=message):
        LongBench(subset="qasper", source=source).sample(byte_tokenizer, 1000, 0)


def test_samples_beyond_the_last_are_refused(tmp_path: Path, byte_tokenizer: Any) -> None:
    source = write(tmp_path / "rows.jsonl", longbench_row())
    with pytest.raises(ValueError, match="seed must be below the 1 samples of 'longbench/qasper', got 1"):
        LongBench(subset="qasper", source=source).sample(byte_tokenizer, 1000, 1)


SCRIPTED = {
    "index": 0,
    "input": "Some text.\nThe number for x is 12.\nMore.\nWhat is the number for x?",
    "outputs": ["12"],
    "length": 20,
    "answer_prefix": " The number for x is",
}
ON_HUB = {
    "context": "Some text. The number for x is 12. More.",
    "question": "What is the number for x?",
    "answer_prefix": "The number for x is",
    "answer": ["12"],
    "task": "niah_single_1",
    "max_new_tokens": 128,
}


@pytest.mark.parametrize("row", [SCRIPTED, ON_HUB], ids=["scripts", "hub"])
def test_ruler_parts_context_and_question(row: dict[str, Any], tmp_path: Path, byte_tokenizer: Any) -> None:
    source = write(tmp_path / "niah.jsonl", row)
    sample = Ruler(task="niah_single_1", source=source).sample(byte_tokenizer, 200, 0)
    assert "is 12." in sample.context
    assert "What" not in sample.context
    assert sample.turns[0].question.startswith("\nWhat is the number for x?")
    assert sample.turns[0].question.endswith("The number for x is")
    assert sample.judge(0, " 12.") == 1
    with pytest.raises(ValueError, match=r"length must be at least \d+ tokens for sample 0 of 'ruler/niah_single_1'"):
        Ruler(task="niah_single_1", source=source).sample(byte_tokenizer, 50, 0)


def test_ruler_takes_the_rows_of_its_task(tmp_path: Path, byte_tokenizer: Any) -> None:
    source = write(tmp_path / "all.jsonl", ON_HUB, ON_HUB | {"task": "vt", "answer": ["A", "B"]})
    sample = Ruler(task="vt", source=source).sample(byte_tokenizer, 200, 0)
    assert sample.judge(0, "only A") == 0.5
    with pytest.raises(ValueError, match="must hold samples of 'cwe'; it holds none"):
        Ruler(task="cwe", source=source).sample(byte_tokenizer, 200, 0)


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"subset must be one of narrativeqa, .*; got 'dureader'"):
        LongBench(subset="dureader")
    with pytest.raises(ValueError, match=r"task must be one of niah_single_1, .*; got 'niah'"):
        Ruler(task="niah")


def test_hub_needs_the_package_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"Install kvcompress\[datasets\], or give a local file"):
        hub_rows("THUDM/LongBench", "qasper")


def test_hub_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(repository: str, subset: str, *, split: str) -> list[dict[str, str]]:
        asked.append((repository, subset, split))
        if subset != "wikitext-2-raw-v1":
            raise RuntimeError("Dataset scripts are no longer supported")
        return [{"text": " = Moss = \n"}, {"text": ""}, {"text": " It is green .\n"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert read_text("wikitext") == " = Moss = \n It is green .\n"
    with pytest.raises(ValueError, match=r"no longer supported. Download it and give the local file"):
        hub_rows("THUDM/LongBench", "qasper")
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test"), ("THUDM/LongBench", "qasper", "test")]


def test_texts_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Grüße", encoding="utf-8")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    assert read_text(tmp_path / "text.txt") == "Grüße"
    for name in ("bytes", "nowhere"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read .* Give a UTF-8 text file, or 'wikitext'"):
            read_text(tmp_path / name)
