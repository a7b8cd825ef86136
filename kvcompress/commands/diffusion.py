"""``kvcompress diffusion``: masked-diffusion language models, sampled with and without a cache, and looked into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.commands import analysis_options, diffusion_options, options

diffusion = typer.Typer(help="Sample masked-diffusion language models with a block cache, and see what they attend to.")


@diffusion.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Sample masked-diffusion language models with a block cache, and see what they attend to."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@diffusion.command()
def demo(
    seed: options.ExampleSeed = 0,
    examples: Annotated[int, typer.Option(min=1, help="Sums to add.")] = 8,
    as_json: options.AsJson = False,
) -> None:
    """Let the embedded model add numbers of 64 digits: without a cache, with one, and with eviction.

    Takes well under a minute on a laptop.
    """
    from kvcompress.commands.diffusion_demo import run_demo

    run_demo(seed=seed, examples=examples, as_json=as_json)


@diffusion.command()
def train(
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder for checkpoint, log and model.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of the whole schedule.")] = 2000,
    minutes: Annotated[float, typer.Option(min=0.0, help="Stop at a checkpoint after this wall time.")] = 60.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    force: analysis_options.Force = False,
) -> None:
    """Train the embedded model anew, on one thread; exit code 3 where the time ended before the last step."""
    from kvcompress.commands.diffusion_train import run_train

    if not run_train(output_dir, seed=seed, steps=steps, minutes=minutes, resume=resume, force=force):
        raise typer.Exit(3)


@diffusion.command()
def generate(
    model: diffusion_options.Model = None,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    gen_length: diffusion_options.GenLength = 64,
    steps: diffusion_options.Steps = 64,
    block_length: diffusion_options.BlockLength = 8,
    temperature: diffusion_options.Temperature = 0.0,
    seed: diffusion_options.Seed = 0,
    cache: diffusion_options.Cache = False,
    keep: diffusion_options.Keep = 1.0,
    refresh_every: diffusion_options.RefreshEvery = None,
    visualize_attention: diffusion_options.VisualizeAttention = False,
    save_history: diffusion_options.SaveHistory = False,
    max_layers: diffusion_options.MaxLayers = None,
    output_dir: diffusion_options.OutputDir = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    force: analysis_options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Continue a prompt by denoising masks, block by block.

    Without a prompt the embedded model gets a sum to add, and its answer is checked.
    """
    from kvcompress.commands.diffusion_generate import GenerateRequest, run_generate

    request = GenerateRequest(
        model=model,
        prompt=prompt,
        prompt_file=prompt_file,
        gen_length=gen_length,
        steps=steps,
        block_length=block_length,
        temperature=temperature,
        seed=seed,
        cache=cache,
        keep=keep,
        refresh_every=refresh_every,
        visualize_attention=visualize_attention,
        save_history=save_history,
        max_layers=max_layers,
        output_dir=output_dir,
        device=device,
        dtype=dtype,
        force=force,
    )
    run_generate(request, as_json=as_json)


@diffusion.command()
def analyze(
    folder: diffusion_options.HistoryFolder,
    max_layers: diffusion_options.MaxLayers = None,
    prompt_length: diffusion_options.PromptLength = None,
    max_tokens: diffusion_options.MaxTokens = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Tell each layer and the tokens that count.")] = False,
    output_dir: analysis_options.OutputDir = None,
    force: analysis_options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Analyse the attention of a sampling run over its steps: JSON, pictures, and a page where there is a capture."""
    from kvcompress.commands.diffusion_analyze import AnalyzeRequest, run_analyze

    request = AnalyzeRequest(
        folder=folder,
        max_layers=max_layers,
        prompt_length=prompt_length,
        max_tokens=max_tokens,
        verbose=verbose,
        output_dir=output_dir,
        force=force,
    )
    run_analyze(request, as_json=as_json)


@diffusion.command()
def evaluate(
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of `kvcompress diffusion train`. Default: the embedded model.", show_default=False),
    ] = None,
    sums: Annotated[int, typer.Option(min=1, help="Sums on which accuracy is measured.")] = 100,
    steps: Annotated[str, typer.Option(help="Numbers of steps for the 64 digits, with commas.")] = "64,32,16",
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each sampler.")] = 5,
    output_dir: diffusion_options.OutputDir = None,
    force: analysis_options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure accuracy, agreement, time and bytes of the cached samplers against the uncached one.

    With --output-dir, diffusion_training.json and diffusion_caching.json are written there.
    """
    from kvcompress.commands.diffusion_evaluate import EvaluateRequest, run_evaluate

    request = EvaluateRequest(model=model, sums=sums, steps=steps, rounds=rounds, output_dir=output_dir, force=force)
    run_evaluate(request, as_json=as_json)
