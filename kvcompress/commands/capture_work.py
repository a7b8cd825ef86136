"""The work of ``kvcompress capture``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from kvcompress.commands import capture_summary
from kvcompress.commands.capture_folder import OutputFolder
from kvcompress.commands.capture_progress import CaptureProgress
from kvcompress.commands.capture_prompts import make_prompt, prompt_limit
from kvcompress.commands.capture_request import CaptureRequest
from kvcompress.commands.failures import CommandError, warn
from kvcompress.commands.generation import uncompressed_warnings
from kvcompress.commands.loading import LoadedModel, choose_place, load_model
from kvcompress.commands.model_names import shown_name
from kvcompress.commands.runs import full_cache, full_cache_bytes, run_model
from kvcompress.commands.summary import size
from kvcompress.engine.attach import text_config
from kvcompress.engine.cache import CompressedCache
from kvcompress.engine.head_shapes import head_shapes

if TYPE_CHECKING:
    from transformers.cache_utils import DynamicCache

    from kvcompress.analysis.summary.schema import Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedSample:
    """A sample that has been written.

    Attributes:
        summary: its JSON.
        kv_bytes: bytes that the cache held in the end.
        text: what was generated.
        warnings: what the user was told of it.
    """

    summary: Summary
    kv_bytes: int
    text: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """What a capture wrote.

    Attributes:
        request: what was asked for.
        loaded: the model.
        samples: the samples.
        older: numbers of samples of an earlier capture that are still in the folder.
    """

    request: CaptureRequest
    loaded: LoadedModel
    samples: tuple[CapturedSample, ...]
    older: tuple[int, ...]


def run_capture(request: CaptureRequest, *, as_json: bool) -> None:
    """Captures, and tells what was written.

    Raises:
        CommandError: something that was given cannot be used; nothing has been written.
        ValueError: likewise.
    """
    captured = capture_texts(request)
    if as_json:
        sys.stdout.write(capture_summary.as_json_line(captured))
    else:
        capture_summary.show(captured, Console(highlight=False))


def capture_texts(request: CaptureRequest) -> Captured:
    """Runs the model on each text and writes a sample of each; warnings go to stderr.

    After an interruption the complete samples stay, and a line on stderr says how many.

    Raises:
        CommandError: something that was given cannot be used; nothing has been written.
        ValueError: likewise.
        KeyboardInterrupt: the user stopped it.
    """
    folder = OutputFolder(request.output_dir, force=request.force)
    done: list[CapturedSample] = []
    try:
        place = choose_place(request.device, request.dtype)
        texts = None if _is_built_in(request) else request.texts.texts(None, embedded=False)
        loaded = load_model(request.model, place)
        for message in loaded.warnings:
            warn(message)
        _check_raw(request, loaded)
        texts = texts or request.texts.texts(loaded.tokenizer, embedded=True)
        _capture_all(request, loaded, texts, folder, done)
    except BaseException as error:
        folder.clean_up()
        if isinstance(error, KeyboardInterrupt):
            typer.echo(f"stopped: {_count(len(folder.written()))} complete in {request.output_dir}", err=True)
        raise
    return Captured(request=request, loaded=loaded, samples=tuple(done), older=tuple(folder.older()))


def _capture_all(
    request: CaptureRequest,
    loaded: LoadedModel,
    texts: Sequence[str],
    folder: OutputFolder,
    done: list[CapturedSample],
) -> None:
    from kvcompress.analysis.capture.recorder import Recorder

    limit = prompt_limit(loaded, request.max_length, request.settings.max_new_tokens)
    recorder = Recorder(
        loaded.model,
        request.output_dir,
        tokenizer=loaded.tokenizer,
        name=shown_name(loaded.name),
        settings=request.recorder,
        force=request.force,
    )
    with CaptureProgress(loaded.model, len(texts)) as progress, recorder:
        for index, text in enumerate(texts):
            prompt = make_prompt(loaded, text, limit, request.settings.max_new_tokens)
            _tell(index, prompt.warnings)
            _tell_raw_size(request, loaded, index, prompt.ids.shape[1], folder)
            progress.begin_sample(index, prompt.ids.shape[1], request.settings.max_new_tokens)
            cache = _make_cache(request, loaded, prompt.ids.shape[1])
            run = run_model(loaded, prompt.ids, cache, request.settings)
            recorder.new_sample()  # writes this one
            late = _late_warnings(cache)
            _tell(index, late)
            done.append(
                CapturedSample(
                    summary=recorder.samples[-1],
                    kv_bytes=_bytes_of(cache),
                    text=run.text,
                    warnings=(*prompt.warnings, *late),
                )
            )


def _is_built_in(request: CaptureRequest) -> bool:
    """Whether the text is made with the embedded model's tokenizer."""
    texts = request.texts
    return request.model is None and not texts.use_wikitext and texts.prompt is None and texts.prompt_file is None


def _make_cache(request: CaptureRequest, loaded: LoadedModel, prompt_tokens: int) -> CompressedCache | DynamicCache:
    if request.choice is None:
        return full_cache(loaded)
    return CompressedCache(loaded.model, request.choice.policy(prompt_tokens))


def _bytes_of(cache: CompressedCache | DynamicCache) -> int:
    return cache.report().num_bytes if isinstance(cache, CompressedCache) else full_cache_bytes(cache)


def _late_warnings(cache: CompressedCache | DynamicCache) -> tuple[str, ...]:
    if not isinstance(cache, CompressedCache):
        return ()
    return tuple(uncompressed_warnings(cache.policy, cache.report()))


def _check_raw(request: CaptureRequest, loaded: LoadedModel) -> None:
    """Checks that the layers and heads whose raw attention is wanted are there."""
    raw = request.recorder.raw
    if raw is None:
        return
    layers, heads = _geometry(loaded)
    for option, wanted, there in (("--save-layers", raw.layers, layers), ("--save-heads", raw.heads, heads)):
        if wanted is not None and max(wanted) >= there:
            raise CommandError(f"{option} must be below {there} for {loaded.name!r}; got {max(wanted)}")


def _tell_raw_size(
    request: CaptureRequest, loaded: LoadedModel, index: int, prompt_tokens: int, folder: OutputFolder
) -> None:
    """Says how much raw attention there will be, and refuses more than the disk holds."""
    raw = request.recorder.raw
    if raw is None:
        return
    layers, heads = _geometry(loaded)
    needed = raw.num_bytes(
        layers=layers,
        query_heads=heads,
        prompt_tokens=prompt_tokens,
        new_tokens=request.settings.max_new_tokens - 1,  # the last is not fed back
    )
    told = f"raw attention of sample {index}: at most {size(needed)}"
    if 2 * needed > folder.free_bytes:  # it is collected first and then joined into one file
        raise CommandError(
            f"{told}, twice that while it is written, and the disk of {request.output_dir} has "
            f"{size(folder.free_bytes)} free. Choose layers or heads, a smaller --save-max-tokens, or another disk."
        )
    typer.echo(told, err=True)
    if prompt_tokens > raw.max_tokens:
        warn(
            f"sample {index}: passes that see more than {raw.max_tokens} tokens (--save-max-tokens) store no raw "
            f"attention, and the prompt alone has {prompt_tokens}"
        )


def _geometry(loaded: LoadedModel) -> tuple[int, int]:
    """Layers and query heads of the model, of the layer with most."""
    shapes = head_shapes(text_config(loaded.model))
    return len(shapes), max(shape.query_heads for shape in shapes)


def _tell(index: int, messages: Sequence[str]) -> None:
    for message in messages:
        warn(f"sample {index}: {message}")


def _count(samples: int) -> str:
    return "1 sample is" if samples == 1 else f"{samples or 'no'} samples are"
