"""What recording costs: `python -m kvcompress.bench.capture_overhead [--quick] [--cpu-time]`.

A small random model reads a long prompt and decodes some tokens, with and without a recorder, with the same cache.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM

from kvcompress import CakeCache
from kvcompress.analysis.capture.recorder import Recorder
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.bench.engine_speed import describe
from kvcompress.bench.measure import Case, CaseRow, Clock, Contender, measure, relative_error
from kvcompress.bench.results_file import RESULTS, environment, results, write_results
from kvcompress.engine.cache_argument import cache_argument

_CACHE_SIZE, _NEW_TOKENS = 1024, 8
# Tokens, repeats and caches, by whether it is a quick run.
_SIZES: Final = {
    False: ((8192, 3, ("full", "cake")), (32768, 2, ("full",))),
    True: ((256, 1, ("full", "cake")), (512, 1, ("full",))),
}
_ALL_QUERIES_TOKENS = 8192  # up to this length, recording with every query observed is timed too


def capture_overhead(*, quick: bool, clock: Clock) -> tuple[list[CaseRow], dict[str, int]]:
    """Times recorders against runs without one.

    Args:
        quick: tiny sizes, to see that everything works; the figures mean nothing.
        clock: seconds.

    Returns:
        The rows, and the bytes that each recording took on disk.
    """
    model = _random_model()
    folder = Path(tempfile.mkdtemp(prefix="kvcompress-capture-"))
    rows: list[CaseRow] = []
    sizes: dict[str, int] = {}
    try:
        for tokens, repeats, names in _SIZES[quick]:
            for name, make in ((name, _caches(model)[name]) for name in names):
                rows += _case(model, tokens, repeats, name, make, folder, clock)
                sizes[f"{name}, {tokens} tokens"] = sum(path.stat().st_size for path in folder.iterdir())
    finally:
        shutil.rmtree(folder)
    return rows, sizes


def _random_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1 << 16,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


def _caches(model: LlamaForCausalLM) -> dict[str, Callable[[], Cache]]:
    return {
        "full": partial(DynamicCache, config=model.config),
        "cake": partial(CakeCache, model, cache_size=_CACHE_SIZE),
    }


def _case(
    model: LlamaForCausalLM,
    tokens: int,
    repeats: int,
    name: str,
    make: Callable[[], Cache],
    folder: Path,
    clock: Clock,
) -> list[CaseRow]:
    prompt = torch.randint(3, 500, (1, tokens), generator=torch.Generator().manual_seed(0))
    providers: dict[str, RecorderSettings | None] = {"without": None, "recorder": RecorderSettings()}
    if tokens <= _ALL_QUERIES_TOKENS:
        providers["recorder_all_queries"] = RecorderSettings(max_queries=tokens)
    expected = _generate(model, prompt, make(), None, folder).double()

    def run(chosen: RecorderSettings | None) -> torch.Tensor:
        return _generate(model, prompt, make(), chosen, folder)

    contenders = [
        Contender(
            provider=provider,
            run=partial(run, chosen),
            error=lambda chosen=chosen: relative_error(run(chosen), expected),  # type: ignore[misc]
            tolerance=0.0,  # a recorder changes nothing
            counts_memory=True,
        )
        for provider, chosen in providers.items()
    ]
    shape = f"{tokens} tokens and {_NEW_TOKENS} new ones, {name} cache, 4 layers, width 256, 4/2 heads"
    case = Case(name=f"capture_{name}", shape=shape, ratio_to="without")
    return measure(case, contenders, repeats=repeats, warm_up=0, clock=clock)


@torch.inference_mode()
def _generate(
    model: Any, prompt: torch.Tensor, cache: Cache, settings: RecorderSettings | None, folder: Path
) -> torch.Tensor:
    recorder = nullcontext() if settings is None else Recorder(model, folder, settings=settings, force=True)
    with recorder:
        tokens: torch.Tensor = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            **cache_argument(cache),
            max_new_tokens=_NEW_TOKENS,
            min_new_tokens=_NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    return tokens


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: does it run? Writes only with --out.")] = False,
    out: Annotated[Path | None, typer.Option(help="The JSON file to write.")] = None,
    cpu_time: Annotated[
        bool, typer.Option("--cpu-time", help="One thread, and its processor time: for a busy machine.")
    ] = False,
) -> None:
    """Time recorders against runs without one, and count memory and disk."""
    if cpu_time:
        torch.set_num_threads(1)
    made_in = environment()
    rows, sizes = capture_overhead(quick=quick, clock=time.process_time if cpu_time else time.perf_counter)
    for row in rows:
        typer.echo(describe(row))
    typer.echo("\n".join(f"{name}: {size / 2**20:.1f} MiB on disk" for name, size in sizes.items()))
    target = out or (None if quick else RESULTS / "capture_overhead.json")
    if target is not None:
        notes = {"clock": "processor time" if cpu_time else "wall time", "disk_bytes": sizes}
        write_results(results(rows, made_in=made_in, notes=notes), target)


if __name__ == "__main__":
    typer.run(main)
