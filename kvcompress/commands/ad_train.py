"""The work of ``kvcompress ad train``."""

from __future__ import annotations

from pathlib import Path

import typer

from kvcompress.commands.failures import CommandError

OUT_OF_TIME = 3  # exit code


def run_train(output_dir: Path, *, seed: int, steps: int | None, minutes: float, resume: bool) -> None:
    """Trains, and tells where the model is.

    Raises:
        CommandError: nothing to resume, a run that would be overwritten, or a folder that cannot be written.
        Exit: with code 3, the time was over before the last step.
    """
    from transformers.utils import logging

    from kvcompress.bench.testbed.checkpoint import FILE_NAME
    from kvcompress.bench.workloads.algorithm_distillation.settings import Settings
    from kvcompress.bench.workloads.algorithm_distillation.train import train

    logging.disable_progress_bar()
    checkpoint = output_dir / FILE_NAME
    if resume and not checkpoint.is_file():
        raise CommandError(f"--resume needs a checkpoint, got none at {checkpoint}; leave --resume out")
    if not resume and checkpoint.exists():
        raise CommandError(f"{checkpoint} is there already; give --resume to go on, or another --output-dir")
    settings = Settings(seed=seed) if steps is None else Settings(seed=seed, steps=steps)
    try:
        finished = train(settings, output_dir, minutes=minutes, resume=resume)
    except OSError as error:
        reason = error.strerror or error
        raise CommandError(f"--output-dir must be a folder that can be written; got {output_dir} ({reason})") from error
    if not finished:
        typer.echo(f"time is over; go on with --resume --output-dir {output_dir}", err=True)
        raise typer.Exit(OUT_OF_TIME)
    typer.echo(f"written: {output_dir / 'model'}")
