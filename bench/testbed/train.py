"""Train the testbed model: `python -m kvcompress.bench.testbed.train --out DIR`.

The schedule is by steps, so a run does not depend on the machine's speed; `--minutes` only stops it, at a
checkpoint from which `--resume` goes on.
"""

import logging
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from torch.multiprocessing.spawn import spawn

from kvcompress.bench.testbed.architecture import save_model
from kvcompress.bench.testbed.evaluate import DEFAULT_LENGTHS, evaluate_model, write_evaluation
from kvcompress.bench.testbed.settings import Settings
from kvcompress.bench.testbed.trainer import Trainer

_LOGGER = logging.getLogger(__name__)


def _work(rank: int, settings: Settings, folder: Path, meeting: str, minutes: float, resume: bool) -> None:
    """Be one of the run's processes."""
    # One thread each: torch's thread pools collapse when others use the cores as well.
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=settings.processes)
    try:
        trainer = Trainer(settings, folder, resume=resume)
        finished = trainer.run(minutes)
        if finished and rank == 0:
            save_model(trainer.model, folder / "model")
    finally:
        dist.destroy_process_group()


def train(settings: Settings, folder: Path, *, minutes: float, resume: bool) -> bool:
    """Train, and write the model if the last step was reached.

    Args:
        settings: the run's settings; on resuming, `steps` may differ from the first start's, which moves the
            rest of the schedule.
        folder: where checkpoint, log and model go.
        minutes: wall time allowed.
        resume: go on from the folder's checkpoint.

    Returns:
        Whether the model was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "model" / "model.safetensors"
    written.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        meeting = f"file://{scratch}/meeting"
        spawn(_work, (settings, folder, meeting, minutes, resume), nprocs=settings.processes)
    return written.exists()


def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, log, model and evaluation.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps of the whole schedule.")] = Settings().steps,
    minutes: Annotated[float, typer.Option(help="Stop at a checkpoint after this wall time.")] = 55.0,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = False,
    samples: Annotated[int, typer.Option(help="Examples per task and length of the evaluation; 0 for none.")] = 200,
) -> None:
    """Train the testbed model, then evaluate it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = Settings(seed=seed, steps=steps)
    if not train(settings, out, minutes=minutes, resume=resume):
        _LOGGER.info("time is over; go on with --resume --out %s", out)
        raise typer.Exit(code=3)
    if samples > 0:
        evaluation = evaluate_model(out / "model", samples=samples, lengths=DEFAULT_LENGTHS)
        write_evaluation(evaluation, out / "evaluation.json")
    _LOGGER.info("model, log and evaluation are in %s", out)


if __name__ == "__main__":
    typer.run(main)
