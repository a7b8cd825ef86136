"""What ``kvcompress capture`` tells in the end, for people and as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from kvcompress.commands.figures import three_digits
from kvcompress.commands.model_names import shown_name
from kvcompress.commands.summary import size

if TYPE_CHECKING:
    from kvcompress.commands.capture_work import Captured, CapturedSample

SCHEMA = "kvcompress.captured/1"
_MOST_CHARACTERS = 48  # of a generated text in the table


def as_json(captured: Captured) -> dict[str, Any]:
    """The outcome as what ``--json`` prints."""
    model = captured.loaded.model
    return {
        "schema": SCHEMA,
        "folder": str(captured.request.output_dir),
        "model": shown_name(captured.loaded.name),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "samples": [_sample_json(captured, sample) for sample in captured.samples],
        "older_samples": list(captured.older),
        "warnings": list(captured.loaded.warnings),
    }


def as_json_line(captured: Captured) -> str:
    """The same as one line."""
    return json.dumps(as_json(captured), allow_nan=False) + "\n"


def _sample_json(captured: Captured, sample: CapturedSample) -> dict[str, Any]:
    from kvcompress.analysis.summary.paths import summary_name

    summary, folder = sample.summary, captured.request.output_dir
    return {
        "sample": summary.sample,
        "files": [str(folder / summary.data_file), str(folder / summary_name(summary.sample))],
        "policy": summary.policy,
        "prompt_tokens": summary.prompt_tokens,
        "tokens": summary.tensors["token.ids"].shape[0],
        "events": summary.tensors["event.kind"].shape[0],
        "kv_bytes": sample.kv_bytes,
        "file_bytes": summary.data_bytes,
        "seconds": summary.seconds,
        "text": sample.text,
        "warnings": list(sample.warnings),
    }


def show(captured: Captured, console: Console) -> None:
    """Prints what was written."""
    from kvcompress.analysis.summary.paths import summary_name

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("sample", "prompt", "tokens", "events", "cache", "on disk", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("generated")
    for sample in captured.samples:
        summary = sample.summary
        text = " ".join(sample.text.split())
        table.add_row(
            str(summary.sample),
            f"{summary.prompt_tokens:,}",
            f"{summary.tensors['token.ids'].shape[0]:,}",
            f"{summary.tensors['event.kind'].shape[0]:,}",
            size(sample.kv_bytes),
            size(summary.data_bytes),
            three_digits(summary.seconds),
            text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…",
        )
    first = captured.samples[0].summary
    policy = "full cache" if first.policy is None else _described(first.policy)
    model = first.model
    console.print(f"{model.name} on {model.device}, {model.dtype}; {policy}", markup=False, soft_wrap=True)
    console.print(table, markup=False)
    for sample in captured.samples:
        folder = captured.request.output_dir
        console.print(f"written: {folder / sample.summary.data_file}", markup=False, soft_wrap=True)
        console.print(f"written: {folder / summary_name(sample.summary.sample)}", markup=False, soft_wrap=True)
    if captured.older:
        console.print(f"of an earlier capture, and still there: samples {_listed(captured.older)}", markup=False)


def _described(policy: dict[str, Any]) -> str:
    given = ", ".join(f"{name}={value}" for name, value in policy.items() if name != "name" and value is not None)
    return f"{policy['name']} ({given})"


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
