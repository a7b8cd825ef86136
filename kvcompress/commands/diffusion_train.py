"""The work of ``kvcompress diffusion train``."""

from __future__ import annotations

from pathlib import Path

import typer
from transformers.utils import logging as transformers_logging

from kvcompress.commands.failures import CommandError
from kvcompress.commands.result_files import claim


def run_train(folder: Path, *, seed: int, steps: int, minutes: float, resume: bool, force: bool) -> bool:
    """Trains, and tells where the model is or how to go on.

    Args:
        folder: for checkpoint, log and model.
        seed: of weights and data.
        steps: of the whole schedule.
        minutes: wall time allowed.
        resume: whether to go on from the folder's checkpoint.
        force: whether an earlier run in the folder is overwritten.

    Returns:
        Whether the last step was reached.

    Raises:
        CommandError: an earlier run is there and neither ``resume`` nor ``force`` is set, or there is none to resume.
    """
    from kvcompress.bench.testbed.checkpoint import FILE_NAME
    from kvcompress.bench.workloads.diffusion_lm.settings import Settings
    from kvcompress.bench.workloads.diffusion_lm.train import train
    from kvcompress.bench.workloads.diffusion_lm.trainer import LOG_NAME

    transformers_logging.disable_progress_bar()
    if resume and not (folder / FILE_NAME).is_file():
        raise CommandError(f"--resume needs a checkpoint; {folder} has none. Start without --resume.")
    if not resume:
        claim(folder, [FILE_NAME, LOG_NAME], force=force)
    finished = train(Settings(seed=seed, steps=steps), folder, minutes=minutes, resume=resume)
    if finished:
        typer.echo(f"written: {folder / 'model'}, {folder / LOG_NAME}")
    else:
        typer.echo(f"the time is over; go on with --resume --steps {steps} --output-dir {folder}", err=True)
    return finished
