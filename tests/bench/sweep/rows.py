"""Rows for the tests of the sweep."""

from dataclasses import replace
from typing import Any

from kvcompress.analysis.intervals import score_interval
from kvcompress.bench.sweep.row import Cell, Row

CELL = Cell(
    policy="cake:window_size=8",
    cache_size=48,
    ratio=None,
    task="needle_8",
    length=256,
    mode="query_aware",
    n=4,
    seed=0,
    fidelity_n=2,
    policy_parameters="Cake(cache_size=48, window_size=8)",
    task_parameters="Needles(name='needle_8')",
    model="embedded",
    model_digest="0123456789abcdef",
    dtype="float32",
    device="cpu",
)


def make_row(scores: tuple[float, ...] = (1.0, 1.0, 0.0, 1.0), **changes: Any) -> Row:
    """Return a row; ``changes`` go to the row or to its cell, whichever has them."""
    of_row = {name: changes.pop(name) for name in list(changes) if name in Row.__dataclass_fields__}
    if changes.get("policy") == "full":
        changes = {"cache_size": None, **changes}
    row = Row(
        cell=replace(CELL, **{"n": len(scores), **changes}),
        score=sum(scores) / len(scores),
        ci95=score_interval(scores),
        scores=scores,
        kv_bytes=1000.0,
        layer_tokens=(60.0, 36.0),
        kl=0.25,
        kl_ci95=(0.125, 0.5),
        top1=0.75,
        top1_ci95=(0.5, 1.0),
        tokens_per_second=100.0,
        tokens_per_second_ci95=(90.0, 110.0),
        ttft=0.25,
        peak_bytes=5000,
        seconds=2.0,
        batch_size=16,
        versions={"torch": "2.13.0", "transformers": "5.23.0", "triton": None},
        commit="0" * 40,
        dirty=False,
        cpu="a processor",
        accelerator=None,
        time_utc="2026-11-21T00:00:00+00:00",
    )
    return replace(row, **of_row)


def sweep_rows() -> list[Row]:
    """Return a small sweep: two policies and the full cache, two tasks, both modes."""
    rows = []
    for mode in ("query_aware", "query_agnostic"):
        for task in ("needle_8", "variables_2"):
            place = {"mode": mode, "task": task}
            rows.append(make_row((1.0,) * 12, policy="full", kv_bytes=8000.0, layer_tokens=(256.0, 256.0), **place))
            rows.append(make_row((1.0,) * 11 + (0.0,), **place))
            rows.append(make_row((0.0,) * 11 + (1.0,), policy="random", layer_tokens=(48.0, 48.0), **place))
    return rows
