"""Strategies as the options of ``kvcompress ad`` name them, and their results as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcompress.commands.failures import CommandError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from kvcompress.bench.workloads.algorithm_distillation.strategies import Strategy


def parse_strategies(strategies: str, ratios: str, interval: int) -> list[Strategy]:
    """Every named strategy at every ratio, strategies outermost.

    Args:
        strategies: names, with commas.
        ratios: numbers in (0, 1], with commas.
        interval: steps between two compressions.

    Raises:
        CommandError: something that is no number.
        ValueError: an unknown strategy, one that does not shrink a growing history, or a ratio out of range.
    """
    from kvcompress.bench.workloads.algorithm_distillation.strategies import Strategy, check_evicts

    try:
        shares = [float(part) for part in ratios.split(",")]
    except ValueError:
        raise CommandError(f"--ratios must be numbers with commas between, such as 0.5,0.3; got {ratios!r}") from None
    names = [name.strip() for name in strategies.split(",") if name.strip()]
    if not names:
        raise CommandError("--strategies must name at least one, such as topk; got none")
    found = [Strategy(name=name, ratio=share, interval=interval) for name in names for share in shares]
    for strategy in found:
        check_evicts(strategy)
    return list(dict.fromkeys(found))


def load_agent(model: Path | None) -> LlamaForCausalLM:
    """The agent of a folder, or the shipped one.

    Raises:
        CommandError: the folder holds none.
        ValueError: it is of another kind.
    """
    from transformers.utils import logging

    from kvcompress.bench.workloads.algorithm_distillation.location import MODEL_DIR, load_agent

    logging.disable_progress_bar()
    try:
        return load_agent(MODEL_DIR if model is None else model)
    except FileNotFoundError as error:
        raise CommandError(str(error)) from error


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread, so that a thread's processor time is the whole time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of an evaluation as lines of text."""
    head = (
        f"{'history':<20} {'late return':>11} {'lost %':>7} {'[95 %]':>16} {'tokens':>7} {'ms/step':>8} "
        f"{'x re-read':>9} {'x cached':>9}"
    )
    return [head, *(_line(row) for row in rows)]


def _line(row: Mapping[str, Any]) -> str:
    low, high = row["late_return_lost_interval_95"]
    over_reread = row["speedup_over_reread"]
    return (
        f"{row['case']:<20} {row['late_return']:>11.2f} {100 * row['late_return_lost']:>7.1f} "
        f"{f'[{100 * low:.1f}, {100 * high:.1f}]':>16} {row['final_tokens']:>7.0f} {row['median']:>8.2f} "
        f"{'' if over_reread is None else f'{over_reread:.1f}':>9} {row['speedup_over_full']:>9.2f}"
    )
