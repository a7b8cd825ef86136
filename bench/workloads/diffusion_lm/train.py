"""Train the diffusion model; the command `kvcompress diffusion train` calls this."""

from pathlib import Path

import torch

from kvcompress.bench.workloads.diffusion_lm.architecture import save_model
from kvcompress.bench.workloads.diffusion_lm.settings import Settings
from kvcompress.bench.workloads.diffusion_lm.trainer import Trainer


def train(settings: Settings, folder: Path, *, minutes: float, resume: bool) -> bool:
    """Train, and write the model to `folder/model` if the last step was reached.

    The schedule is by steps, so a run does not depend on the machine's speed; the time only stops it.

    Args:
        settings: the run's settings.
        folder: where checkpoint, log and model go; made if it is not there.
        minutes: wall time allowed.
        resume: go on from the folder's checkpoint.

    Returns:
        Whether the model was written.

    Raises:
        FileNotFoundError: if there is no checkpoint to resume from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # so small a model gains nothing from more, and loses much on a busy machine
    trainer = Trainer(settings, folder, resume=resume)
    finished = trainer.run(minutes)
    if finished:
        save_model(trainer.model, folder / "model")
    return finished
