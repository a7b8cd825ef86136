"""The work of ``kvcompress recommend``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kvcompress.commands.counting import counting
from kvcompress.commands.failures import CommandError, warn
from kvcompress.commands.lists import fractions
from kvcompress.commands.loading import EMBEDDED, LoadedModel, choose_place, load_model
from kvcompress.commands.result_files import claim, print_json, write_json, write_text
from kvcompress.commands.studies import describe_model
from kvcompress.engine.attach import text_config
from kvcompress.engine.head_shapes import head_shapes

if TYPE_CHECKING:
    from kvcompress.analysis.recommend.measuring import Tolerance
    from kvcompress.analysis.recommend.recommendations import Measurement, Recommendations
    from kvcompress.analysis.recommend.strategies import Strategy
    from kvcompress.analysis.summary.reader import Sample

FILES = ("compression_recommendations.txt", "compression_recommendations.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    folder: Path
    sample: int
    model: str | None
    device: str
    dtype: str
    no_measure: bool
    kl: float
    top1: float
    budgets: str
    rounds: int
    output_dir: Path
    force: bool
    as_json: bool


def run_recommend(request: Request) -> dict[str, Any]:
    """Finds the pattern, measures the strategies, and writes both files.

    Returns:
        What the JSON file holds.

    Raises:
        CommandError: something that was given cannot be used, or a file is there already.
        ValueError: the sample cannot be read, or says nothing about its attention.
        UnsupportedModelError: the model cannot be compressed.
    """
    from kvcompress.analysis.recommend.measuring import Tolerance
    from kvcompress.analysis.recommend.readable import readable
    from kvcompress.analysis.summary.reader import read_sample

    tolerance = Tolerance(kl=request.kl, top1=request.top1)
    kept = fractions("--budgets", request.budgets)
    if request.no_measure and request.model is not None:
        raise CommandError("--model is what is measured with, and --no-measure measures nothing; leave one out")
    sample = read_sample(request.folder, request.sample)
    text, data = claim(request.output_dir, FILES, force=request.force)
    reason = _why_not(request, sample.summary.model.name)
    model = reason if reason is not None else partial(_load, request)
    found = find_recommendations(sample, model, kept, tolerance, rounds=request.rounds)
    content, written = found.to_json(), readable(found)
    write_text(text, written)
    write_json(data, content)
    if request.as_json:
        print_json({**content, "written": [str(text), str(data)]})
    else:
        typer.echo(written)
        typer.echo(f"written: {text}, {data}")
    return content


def find_recommendations(
    sample: Sample,
    model: Callable[[], LoadedModel] | str,
    kept: Sequence[float],
    tolerance: Tolerance,
    *,
    rounds: int,
) -> Recommendations:
    """Finds the pattern of a sample, and measures the strategies.

    Args:
        sample: the sample.
        model: loads what is measured with; or why nothing is measured.
        kept: fractions of the prompt that are kept.
        tolerance: what a recommendation may cost.
        rounds: timed rounds of each chosen budget.

    Raises:
        CommandError: the model is not the sample's.
        ValueError: the sample says nothing about its attention.
        UnsupportedModelError: the model cannot be compressed.
    """
    from kvcompress.analysis.recommend.pattern import find_pattern
    from kvcompress.analysis.recommend.recommendations import Recommendations
    from kvcompress.analysis.recommend.strategies import propose

    summary, pattern = sample.summary, find_pattern(sample)
    strategies = propose(pattern, _compressible(sample), summary.policy, kept)
    return Recommendations(
        sample=sample.index,
        capture_model=summary.model.name,
        prompt_tokens=summary.prompt_tokens,
        pattern=pattern,
        strategies=tuple(strategies),
        tolerance=tolerance,
        measurement=None if isinstance(model, str) else _measured(model(), sample, strategies, tolerance, rounds),
        why_not_measured=model if isinstance(model, str) else None,
    )


def _compressible(sample: Sample) -> int:
    """Tokens that are compressed when the sample is measured: the prompt, or most of a text that goes no further."""
    from kvcompress.analysis.recommend.measuring import setting_for

    return setting_for(sample.token_count, sample.summary.prompt_tokens).context


def _why_not(request: Request, capture_model: str) -> str | None:
    """Why nothing is measured, or None."""
    if request.no_measure:
        return "--no-measure was given"
    if request.model is None and capture_model != EMBEDDED:
        return f"no model was given; run again with --model (the capture's is called {capture_model!r})"
    return None


def _load(request: Request) -> LoadedModel:
    loaded = load_model(request.model, choose_place(request.device, request.dtype))
    for message in loaded.warnings:
        warn(message)
    return loaded


def _measured(
    loaded: LoadedModel, sample: Sample, strategies: list[Strategy], tolerance: Tolerance, rounds: int
) -> Measurement:
    from kvcompress.analysis.recommend.measuring import measure, setting_for
    from kvcompress.analysis.recommend.recommendations import Measurement

    check_model(loaded, sample)
    setting = setting_for(sample.token_count, sample.summary.prompt_tokens)
    with counting("budgets", sum(len(strategy.budgets) for strategy in strategies)) as advance:
        found = measure(
            loaded.model,
            sample.tensor("token.ids"),
            setting,
            strategies,
            tolerance,
            rounds=rounds,
            advance=advance,
        )
    return Measurement(model=describe_model(loaded), setting=setting, strategies=tuple(found))


def check_model(loaded: LoadedModel, sample: Sample) -> None:
    """Checks that a model can be the capture's.

    Raises:
        CommandError: it has another geometry, or does not know the capture's tokens.
    """
    config, captured = text_config(loaded.model), sample.summary.model
    shapes = head_shapes(config)
    last = max(sample.summary.layer_indices)
    shape = shapes[min(last, len(shapes) - 1)]  # the layers of a capture are of one kind
    given = {
        "query heads": (shape.query_heads, captured.query_heads),
        "kv heads": (shape.kv_heads, captured.kv_heads),
        "head size": (shape.head_dim, captured.head_dim),
    }
    wrong = [f"{name} {got} and not {wanted}" for name, (got, wanted) in given.items() if got != wanted]
    if last >= len(shapes):
        wrong.append(f"{len(shapes)} layers and not at least {last + 1}")
    ids = sample.tensor("token.ids")
    if int(ids.min()) < 0:
        raise CommandError("the capture does not say which tokens its model saw, so nothing can be run; --no-measure")
    if int(ids.max()) >= config.vocab_size:
        wrong.append(f"a vocabulary of {config.vocab_size}, which lacks tokens of the capture")
    if wrong:
        raise CommandError(
            f"--model must be the model of the capture ({captured.name!r}); {loaded.name!r} has {'; '.join(wrong)}"
        )
