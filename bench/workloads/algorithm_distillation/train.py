"""Train the agent: `kvcompress ad train --output-dir DIR`.

The schedule is by steps, so a run does not depend on the machine's speed; the time limit only stops it, at a
checkpoint from which it can go on.
"""

from pathlib import Path

import torch

from kvcompress.bench.workloads.algorithm_distillation.architecture import save_model
from kvcompress.bench.workloads.algorithm_distillation.settings import Settings
from kvcompress.bench.workloads.algorithm_distillation.trainer import Trainer


def train(settings: Settings, folder: Path, *, minutes: float, resume: bool) -> bool:
    """Train on one thread, and write the model if the last step was reached.

    Args:
        settings: the run's settings; on resuming, `steps` may differ from the first start's, which moves the
            rest of the schedule.
        folder: where checkpoint, log and model go.
        minutes: wall time allowed.
        resume: go on from the folder's checkpoint.

    Returns:
        Whether the model was written.

    Raises:
        FileNotFoundError: if there is nothing to resume.
    """
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    # One thread: torch's pools gain nothing at this size and collapse when others use the cores as well.
    torch.set_num_threads(1)
    try:
        trainer = Trainer(settings, folder, resume=resume)
        finished = trainer.run(minutes)
        if finished:
            save_model(trainer.model, folder / "model")
        return finished
    finally:
        torch.set_num_threads(threads)
