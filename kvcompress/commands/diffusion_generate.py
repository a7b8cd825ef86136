"""The work of ``kvcompress diffusion generate``."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import typer

from kvcompress.commands.diffusion_loading import MaskedModel, load_masked_model
from kvcompress.commands.failures import CommandError
from kvcompress.commands.loading import choose_place
from kvcompress.commands.prompts import read_prompt
from kvcompress.commands.result_files import claim, print_json

if TYPE_CHECKING:
    from kvcompress.analysis.capture.recorder import Recorder
    from kvcompress.bench.workloads.diffusion_lm.history import History
    from kvcompress.bench.workloads.diffusion_lm.sampler import Sampled, Step, StepListener
    from kvcompress.bench.workloads.diffusion_lm.sampling_settings import SamplingSettings

_SCHEMA: Final = "kvcompress.diffusion_generate/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """The command's options as they were given; see there."""

    model: str | None
    prompt: str | None
    prompt_file: Path | None
    gen_length: int
    steps: int
    block_length: int
    temperature: float
    seed: int
    cache: bool
    keep: float
    refresh_every: int | None
    visualize_attention: bool
    save_history: bool
    max_layers: int | None
    output_dir: Path | None
    device: str
    dtype: str
    force: bool

    @property
    def records(self) -> bool:
        """Whether anything is recorded."""
        return self.visualize_attention or self.save_history


def run_generate(request: GenerateRequest, *, as_json: bool) -> None:
    """Samples, records what was asked for, and tells what came of it.

    Raises:
        CommandError: options that do not go together, a model or prompt that cannot be used, files in the way.
        ValueError: lengths, steps or a prompt that the sampler refuses.
    """
    from kvcompress.bench.workloads.diffusion_lm.sampling_settings import SamplingSettings, check_prompts

    settings = SamplingSettings(
        gen_length=request.gen_length,
        steps=request.steps,
        block_length=request.block_length,
        temperature=request.temperature,
        seed=request.seed,
    )
    _check(request)
    loaded = load_masked_model(request.model, choose_place(request.device, request.dtype))
    ids, answer = _prompt(request, loaded)
    check_prompts(loaded.model.config, ids, loaded.mask_id, settings.gen_length)
    start = time.perf_counter()
    sampled, written = _sample(request, loaded, ids, settings)
    seconds = time.perf_counter() - start
    text = loaded.tokenizer.decode(sampled.generated[0].tolist())
    content = _content(request, sampled, text, answer, seconds, written)
    if as_json:
        print_json(content)
    else:
        _show(content)


def _check(request: GenerateRequest) -> None:
    if not request.cache and (request.keep != 1.0 or request.refresh_every is not None):
        raise CommandError("--keep and --refresh-every are the cache's; give --cache, or leave them out.")
    if request.cache and request.records:
        raise CommandError(
            "--visualize-attention and --save-history need every step to compute all tokens, which --cache spares. "
            "Leave --cache out."
        )
    if request.records and request.output_dir is None:
        raise CommandError("--visualize-attention and --save-history need a folder; give --output-dir.")
    if request.output_dir is not None and not request.records:
        raise CommandError("--output-dir is for recordings; give --visualize-attention, --save-history, or both.")
    if request.max_layers is not None and not request.records:
        raise CommandError("--max-layers is for recordings; give --visualize-attention, --save-history, or both.")


def _prompt(request: GenerateRequest, loaded: MaskedModel) -> tuple[torch.Tensor, str | None]:
    """The prompt's ids, and the right answer of a built-in one."""
    if request.prompt is not None or request.prompt_file is not None or request.model is not None:
        return loaded.encode(read_prompt(request.prompt, request.prompt_file)), None
    from kvcompress.bench.workloads.diffusion_lm.contenders import evaluation_sums
    from kvcompress.bench.workloads.diffusion_lm.sums import DIGITS

    if request.gen_length != DIGITS:
        raise CommandError(
            f"--gen-length must be {DIGITS} for the built-in sum, got {request.gen_length}. Give a --prompt, or leave "
            "it out."
        )
    sums = evaluation_sums(1, request.seed)
    return sums.prompts.to(loaded.model.device), loaded.tokenizer.decode(sums.answers[0].tolist())


def _sample(
    request: GenerateRequest, loaded: MaskedModel, ids: torch.Tensor, settings: SamplingSettings
) -> tuple[Sampled, list[Path]]:
    from kvcompress.bench.workloads.diffusion_lm.block_cache import CacheSettings
    from kvcompress.bench.workloads.diffusion_lm.history import HistoryKeeper
    from kvcompress.bench.workloads.diffusion_lm.sampler import sample

    cache = CacheSettings(keep=request.keep, refresh_every=request.refresh_every) if request.cache else None
    if not request.records or request.output_dir is None:
        return sample(loaded.model, ids, settings, mask_id=loaded.mask_id, cache=cache), []
    _claim(request, request.output_dir)
    layers = _layers(request, loaded)
    listeners: list[StepListener] = []
    with ExitStack() as stack:
        recorder = None
        if request.visualize_attention:
            recorder = stack.enter_context(_recorder(request, loaded, layers, ids.shape[1]))
            listeners.append(_Marks(recorder))
        keeper = stack.enter_context(HistoryKeeper(loaded.model, layers=layers))
        listeners.append(keeper)
        sampled = sample(loaded.model, ids, settings, mask_id=loaded.mask_id, listeners=listeners)
    from kvcompress.analysis.capture.token_texts import token_texts

    tokens = token_texts(loaded.tokenizer, sampled.ids[0].tolist())
    history = keeper.history(prompt_length=sampled.prompt_length, mask_id=loaded.mask_id, tokens=tokens)
    return sampled, _write(request, request.output_dir, history)


class _Marks:
    """Marks a recorder's passes with the sampler's steps and blocks."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def before_step(self, step: int, block: int) -> None:
        self._recorder.set_generation_context(step=step, block=block)

    def after_step(self, step: Step) -> None:
        """Nothing to do: the recorder has heard the pass."""


def _recorder(request: GenerateRequest, loaded: MaskedModel, layers: list[int] | None, prompt: int) -> Recorder:
    from kvcompress.analysis.capture.recorder import Recorder

    if request.output_dir is None:
        raise CommandError("--visualize-attention needs a folder; give --output-dir.")
    recorder = Recorder(
        loaded.model,
        request.output_dir,
        tokenizer=loaded.tokenizer,
        name=loaded.name,
        layers=layers,
        force=request.force,
    )
    recorder.new_sample(prompt_tokens=prompt)
    return recorder


def _layers(request: GenerateRequest, loaded: MaskedModel) -> list[int] | None:
    """The layers to record, evenly spaced; None: all."""
    there = int(loaded.model.config.num_hidden_layers)
    if request.max_layers is None or request.max_layers >= there:
        return None
    return sorted({round(place) for place in torch.linspace(0, there - 1, request.max_layers).tolist()})


def _claim(request: GenerateRequest, folder: Path) -> None:
    from kvcompress.analysis.report.write import FILE_NAME as PAGE
    from kvcompress.analysis.summary.paths import data_name, summary_name
    from kvcompress.bench.workloads.diffusion_lm.history import FILE_NAME
    from kvcompress.bench.workloads.diffusion_lm.pictures import PICTURES

    names = [FILE_NAME] if request.save_history else []
    if request.visualize_attention:
        names += [data_name(0), summary_name(0), PAGE, *(f"plots/{name}.png" for name in PICTURES)]
    claim(folder, names, force=request.force)


def _write(request: GenerateRequest, folder: Path, history: History) -> list[Path]:
    from kvcompress.bench.workloads.diffusion_lm.history import write_history
    from kvcompress.commands.diffusion_outputs import draw, write_page

    written = [write_history(history, folder)] if request.save_history else []
    if request.visualize_attention:
        written += draw(history, folder / "plots")
        written.append(write_page(folder, folder, force=request.force))
    return written


def _content(
    request: GenerateRequest, sampled: Sampled, text: str, answer: str | None, seconds: float, written: list[Path]
) -> dict[str, Any]:
    use = sampled.cache
    return {
        "schema": _SCHEMA,
        "prompt_tokens": sampled.prompt_length,
        "gen_length": request.gen_length,
        "steps": sampled.passes,
        "block_length": request.block_length,
        "text": text,
        "right": None if answer is None else text == answer,
        "tokens_computed": sampled.tokens_computed,
        "tokens_without_cache": sampled.passes * sampled.ids.shape[1],
        "cache": None
        if use is None
        else {"keep": request.keep, "kept_tokens": use.kept_tokens, "held_bytes": use.held_bytes}
        | {"full_bytes": use.full_bytes, "refreshes": use.refreshes},
        "seconds": seconds,
        "written": [str(path) for path in written],
    }


def _show(content: dict[str, Any]) -> None:
    typer.echo(content["text"])
    share = content["tokens_computed"] / content["tokens_without_cache"]
    right = {None: "", True: ", right", False: ", WRONG"}[content["right"]]
    told = f"{content['gen_length']} tokens in {content['steps']} steps, {content['seconds']:.1f} s{right}; "
    told += f"{content['tokens_computed']} tokens computed, {100 * share:.0f} % of what no cache computes"
    if content["cache"]:
        told += f"; {content['cache']['held_bytes'] / 1024:.0f} KiB held of {content['cache']['full_bytes'] / 1024:.0f}"
    typer.echo(told, err=True)
    for path in content["written"]:
        sys.stderr.write(f"written: {path}\n")
