"""Runs cells on a Ray cluster: one actor with a loaded model per processor or GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from kvcompress.bench.sweep.prompt_memory import PROMPT_BYTES
from kvcompress.bench.sweep.row import Cell, Row
from kvcompress.bench.sweep.runner import Load, Runner
from kvcompress.commands.failures import first_line

RETRIES: Final = 3  # of a cell whose actor died: a node that was taken away, or was out of memory


def on_ray(
    load: Load,
    cells: Sequence[Cell],
    *,
    batch_size: int,
    actors: int | None,
    gpu: bool,
    prompt_bytes: int = PROMPT_BYTES,
) -> Iterator[Row]:
    """Runs cells on the cluster that this machine belongs to (``RAY_ADDRESS``), else on one that is started here.

    Args:
        load: loads the model; every node must be able to.
        cells: what to run.
        batch_size: most samples at a time.
        actors: how many; None: one for each GPU, or processor, of the cluster.
        gpu: whether an actor needs a GPU.
        prompt_bytes: room for prompts in each actor.

    Raises:
        ImportError: ray is not installed.
        ValueError: the cluster has no room for an actor, or a cell's actor died too often.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level="error")
    try:
        settings = {"batch_size": batch_size, "prompt_bytes": prompt_bytes}
        yield from _run_all(ray, load, cells, settings, _count(ray, len(cells), actors, gpu), gpu)
    finally:
        if started:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("--ray needs the package ray, which is not installed. Install kvcompress[ray].") from error
    return ray


def _count(ray: Any, cells: int, actors: int | None, gpu: bool) -> int:
    kind = "GPU" if gpu else "CPU"
    room = int(ray.cluster_resources().get(kind, 0))
    wanted = room if actors is None else actors
    if not 1 <= wanted <= room:
        raise ValueError(f"--ray-actors must be in [1, {room}], the {kind}s of the cluster; got {wanted}")
    return min(wanted, cells)


def _run_all(
    ray: Any, load: Load, cells: Sequence[Cell], settings: dict[str, int], actors: int, gpu: bool
) -> Iterator[Row]:
    """Hands out cells one by one, so that an actor that is slow gets fewer."""
    options: dict[str, Any] = {"num_gpus": 1} if gpu else {"num_cpus": 1}
    remote = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES, **options)(Runner)
    idle = [remote.remote(load, **settings) for _ in range(actors)]
    todo = list(reversed(cells))
    running: dict[Any, Any] = {}  # the promise of a row -> its actor
    while todo or running:
        while todo and idle:
            actor = idle.pop()
            running[actor.run.remote(todo.pop())] = actor
        done, _ = ray.wait(list(running), num_returns=1)
        idle.append(running.pop(done[0]))
        try:
            yield ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # what the cell raised, as if it had run here
        except ray.exceptions.RayActorError as error:
            raise ValueError(
                f"an actor of the sweep died ({first_line(error)}), after up to {RETRIES} restarts; finished rows are "
                "kept. If it ran out of memory, give a smaller --batch-size. Run the same command again."
            ) from error
