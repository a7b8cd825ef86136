"""The work of ``kvcompress diffusion demo``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from kvcompress.commands.diffusion_loading import MaskedModel, load_masked_model
from kvcompress.commands.loading import choose_place
from kvcompress.commands.result_files import print_json

if TYPE_CHECKING:
    from kvcompress.bench.workloads.diffusion_lm.sums import Sums

_SCHEMA: Final = "kvcompress.diffusion_demo/1"
_STEPS: Final = 64
_SHOWN_DIGITS: Final = 8


def run_demo(*, seed: int, examples: int, as_json: bool) -> None:
    """Adds with every sampler and prints what came of it.

    Args:
        seed: which sums.
        examples: how many.
        as_json: print one JSON object instead of text.

    Raises:
        CommandError: the embedded model is not there.
    """
    from kvcompress.bench.workloads.diffusion_lm.contenders import evaluation_sums

    start = time.perf_counter()
    loaded = load_masked_model(None, choose_place("cpu", "float32"))
    sums = evaluation_sums(examples, seed)
    rows = _rows(loaded, sums)
    content = {
        "schema": _SCHEMA,
        "seed": seed,
        "examples": examples,
        "steps": _STEPS,
        "seconds": time.perf_counter() - start,
        "samplers": rows,
    }
    if as_json:
        print_json(content)
    else:
        _show(content, sums)


def _rows(loaded: MaskedModel, sums: Sums) -> list[dict[str, Any]]:
    from kvcompress.bench.workloads.diffusion_lm.contenders import CACHES, sample_sums, settings_of_steps

    batch = sums.prompts.shape[0]
    settings = settings_of_steps(_STEPS)
    rows: list[dict[str, Any]] = []
    reference = None
    for name, cache in CACHES.items():
        # Processor time: other programs on the machine do not count.
        begun = time.process_time()
        samples = sample_sums(loaded.model, sums, settings, cache, batch=batch)
        seconds = time.process_time() - begun
        reference = samples.generated if reference is None else reference
        scores = samples.scores(reference)
        row = {"sampler": name, "processor_seconds": seconds, **scores, **samples.cost()}
        row["times_as_fast"] = rows[0]["processor_seconds"] / seconds if rows else 1.0
        rows.append(row)
    return rows


def _show(content: dict[str, Any], sums: Sums) -> None:
    from kvcompress.bench.workloads.diffusion_lm.sums import DIGITS, PROMPT_LENGTH
    from kvcompress.bench.workloads.diffusion_lm.vocabulary import FIRST_DIGIT_ID

    console = Console(highlight=False)
    console.print(
        f"{content['examples']} sums of two numbers of {DIGITS} digits ({PROMPT_LENGTH} tokens), {DIGITS} masks filled "
        f"in {content['steps']} steps, blocks of 8:"
    )
    table = Table("sampler", "right", "as uncached", "tokens", "KiB held", "s", "speed", box=None)
    table.columns[0].no_wrap = True
    for row in content["samplers"]:
        held = row["held_bytes"]
        table.add_row(
            row["sampler"],
            f"{row['correct']} of {row['sums']}",
            f"{100 * row['tokens_as_uncached']:.1f} %",
            f"{row['tokens_computed']:,}",
            "-" if held is None else f"{held / 1024:.0f}/{row['full_bytes'] / 1024:.0f}",
            f"{row['processor_seconds']:.2f}",
            f"{row['times_as_fast']:.1f}x",
        )
    console.print(table)
    first = [sums.prompts[0, 1 : 1 + DIGITS], sums.prompts[0, 2 + DIGITS : 2 + 2 * DIGITS], sums.answers[0]]
    left, right, total = (
        "".join(str(digit) for digit in (ids - FIRST_DIGIT_ID).tolist()[:_SHOWN_DIGITS]) for ids in first
    )
    console.print(f"the first sum begins (lowest value first): {left} + {right} = {total}")
    console.print(f"took {content['seconds']:.0f} s. Tokens: computed for each sum; s: processor time of one thread")
