"""Generates with a whole model on a GPU, full cache against compressed: `python -m kvcompress.bench.gpu_end_to_end`.

The model has the shape of Llama-3.1-8B and random weights: speed and memory do not depend on what it says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer

from kvcompress.bench.end_to_end_model import MODEL_SHAPES, ModelShape, flops, make_model, step_bytes
from kvcompress.bench.kernels_bench.device_timing import copy_bandwidth, samplers
from kvcompress.bench.results_file import RESULTS, environment, results, write_results
from kvcompress.bench.timed_generation import Generation, contenders, generate, prompt_of, release

SCHEMA: Final = "kvcompress.bench.end_to_end/1"
_FIRST_GUESS: Final = 2e14  # floating-point operations per second, until a cell has been measured
_STEP_GUESS: Final = 0.06  # seconds per decode step
_UNREAD_STEPS: Final = 4  # decode steps before a graph is captured and everything is warm

Row = dict[str, Any]
Clock = Callable[[], float]


class TimeLimit:
    """Says which cells still fit, by what the earlier ones took.

    Args:
        seconds: for all cells together.
        clock: seconds.
    """

    def __init__(self, seconds: float, clock: Clock = time.perf_counter) -> None:
        self.seconds, self.clock = seconds, clock
        self.start, self.rate = clock(), _FIRST_GUESS

    def learn(self, work: float, first_seconds: float) -> None:
        """Notes how long a prefill of so many floating-point operations took."""
        self.rate = work / first_seconds

    def refusal(self, work: float, steps: int) -> str | None:
        """Why a cell is not begun; None where it fits.

        Args:
            work: floating-point operations of its prefill.
            steps: decode steps.
        """
        left = self.seconds - (self.clock() - self.start)
        expected = work / self.rate + steps * _STEP_GUESS
        if expected <= left:
            return None
        return f"would take about {expected:.0f} s, and {max(left, 0):.0f} s of the {self.seconds:.0f} s are left"


def run_shape(shape: ModelShape, device: torch.device, limit: TimeLimit, bandwidth: float) -> Iterator[Row]:
    """Generates with every contender at every length and batch, the smallest work first.

    Args:
        shape: model, lengths and batches.
        device: where it runs.
        limit: which cells still fit.
        bandwidth: bytes per second of a copy on the device.

    Yields:
        Two rows per cell and contender, time to first token and decode step; or one with the reason why not.
    """
    model = make_model(shape, device)
    cells = sorted(
        ((tokens, batch) for tokens in shape.lengths for batch in shape.batches), key=lambda cell: flops(shape, *cell)
    )
    caches = contenders(model, shape)
    for _, make in caches:
        if callable(make):  # kernels are compiled, libraries set up
            generate(model, prompt_of(shape, min(shape.lengths), 1, device), make(), _UNREAD_STEPS)
    for tokens, batch in cells:
        prompt = prompt_of(shape, tokens, batch, device)
        eager: list[list[int]] | None = None
        for provider, make in caches:
            common = _common(shape, tokens, batch, model.dtype, provider)
            work = flops(shape, tokens, batch)
            reason = limit.refusal(work, shape.new_tokens) if callable(make) else make
            done = None
            if reason is None and callable(make):
                try:
                    done = generate(model, prompt, make(), shape.new_tokens)
                except torch.OutOfMemoryError:
                    reason = "out of memory"
            release(device)
            if done is None:
                yield {"case": "generate", **common, "reason": reason}
                continue
            limit.learn(work, done.first_seconds)
            eager = done.ids if provider == "cake" else eager
            yield from _rows(common, done, batch, step_bytes(model, done.cache_bytes), bandwidth, eager)


def _common(shape: ModelShape, tokens: int, batch: int, dtype: torch.dtype, provider: str) -> Row:
    return {
        "shape": f"{shape.name}, B={batch}, {tokens} tokens, cache {shape.cache_size}",
        "dtype": str(dtype).removeprefix("torch."),
        "provider": provider,
    }


def _rows(
    common: Row, done: Generation, batch: int, moved: int, bandwidth: float, eager: list[list[int]] | None
) -> Iterator[Row]:
    """Rows of one generation; its first decode steps, which capture and set up, are not counted."""
    first = 1e3 * done.first_seconds
    memory = {"peak_memory_bytes": done.peak_bytes, "cache_bytes": done.cache_bytes}
    yield {"case": "time_to_first_token", **common, **_times([first]), "bytes_moved": None, **memory}
    steps = [1e3 * seconds for seconds in done.step_seconds[_UNREAD_STEPS:] or done.step_seconds]
    times = _times(steps)
    limit = 1e3 * moved / bandwidth
    yield {
        "case": "decode_step",
        **common,
        **times,
        "bytes_moved": moved,
        **memory,
        "tokens_per_second": 1e3 * batch / times["median"],
        "limit_tokens_per_second": 1e3 * batch / limit,
        "share_of_bandwidth": limit / times["median"],
        "tokens_equal_to_cake": None if eager is None else _agreement(done.ids, eager),
    }


def _times(milliseconds: Sequence[float]) -> Row:
    quantiles = torch.tensor(milliseconds, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double())
    q20, median, q80 = quantiles.tolist()
    return {"unit": "ms", "median": median, "q20": q20, "q80": q80, "repeats": len(milliseconds)}


def _agreement(ids: list[list[int]], others: list[list[int]]) -> float:
    """Fraction of equal tokens."""
    pairs = [pair for mine, theirs in zip(ids, others, strict=True) for pair in zip(mine, theirs, strict=True)]
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs)


def describe(row: Row) -> str:
    """One line on a row, for the terminal."""
    head = f"{row['case']:20} {row['shape']:52} {row['provider']:18}"
    if "reason" in row:
        return f"{head} not measured: {row['reason']}"
    line = f"{head} {row['median']:10.3f} ms [{row['q20']:.3f}, {row['q80']:.3f}]"
    if "tokens_per_second" in row:
        line += f"  {row['tokens_per_second']:8.1f} tokens/s of {row['limit_tokens_per_second']:.1f} at the bandwidth"
    return line if row["peak_memory_bytes"] is None else f"{line}  peak {row['peak_memory_bytes'] / 2**30:.1f} GiB"


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(MODEL_SHAPES)}.")] = "llama-3.1-8b",
    time_limit: Annotated[
        float, typer.Option(help="Seconds for all generations; what does not fit is left out.")
    ] = 200,
    out: Annotated[Path | None, typer.Option(help="The JSON file to write.", show_default=False)] = None,
) -> None:
    """Generate with a full cache, a compressed one, and one decoded by CUDA graphs."""
    if shape not in MODEL_SHAPES:
        raise typer.BadParameter(f"--shape must be one of {', '.join(MODEL_SHAPES)}; got {shape!r}")
    chosen = MODEL_SHAPES[shape]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and chosen.needs_gpu:
        typer.echo(
            f"gpu_end_to_end: --shape {shape} needs a CUDA device, and torch sees none; try --shape tiny", err=True
        )
        raise typer.Exit(2)
    made_in = environment()
    sampler = list(samplers(device).values())[-1]
    bandwidth, _ = copy_bandwidth(device, sampler=sampler, clock=time.perf_counter, quick=not chosen.needs_gpu)
    target = out or (RESULTS / "gpu_end_to_end.json" if chosen.needs_gpu else None)
    notes = {"clock": "wall time", "copy_bandwidth_bytes_per_second": bandwidth}
    rows: list[Row] = []

    def write(*, complete: bool) -> None:
        if target is not None:
            content = results(rows, made_in=made_in, schema=SCHEMA, notes={**notes, "complete": complete})
            write_results(content, target)

    for row in run_shape(chosen, device, TimeLimit(time_limit), bandwidth):
        typer.echo(describe(row))
        rows.append(row)
        write(complete=False)  # a later cell may fail, and what was measured must not be lost
    write(complete=True)
    if target is not None:
        typer.echo(f"written: {target}")


if __name__ == "__main__":
    typer.run(main)
