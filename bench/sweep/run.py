"""Runs the cells of a sweep that are not finished yet: here, in processes of this machine, or on a Ray cluster.

All three yield rows as they are finished, in any order; whoever takes them writes them down.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process

import torch

from kvcompress.bench.sweep.prompt_memory import PROMPT_BYTES
from kvcompress.bench.sweep.row import Cell, Row
from kvcompress.bench.sweep.runner import Load, Runner

Advance = Callable[[int], object]  # is told how many tokens of prompts have run

_here: Runner | None = None  # of a worker process


def in_this_process(runner: Runner, cells: Sequence[Cell], advance: Advance) -> Iterator[Row]:
    """Runs one cell after the other.

    Args:
        runner: with the model.
        cells: what to run.
        advance: is told after each batch how many tokens of prompts have run.
    """
    for cell in cells:
        yield runner.run(cell, partial(_tell, advance, cell.length))


def _tell(advance: Advance, length: int, samples: int) -> None:
    advance(samples * length)


def in_processes(
    load: Load, cells: Sequence[Cell], *, batch_size: int, processes: int, prompt_bytes: int = PROMPT_BYTES
) -> Iterator[Row]:
    """Runs cells in processes of one thread each, every one with a model of its own.

    Small models run faster in several processes than with several threads; a GPU is shared by all of them.

    Args:
        load: loads the model; must survive pickling.
        cells: what to run.
        batch_size: most samples at a time.
        processes: how many, at least 1.
        prompt_bytes: room for prompts in each.

    Raises:
        ValueError: fewer than one process, or one that ended by itself, as for want of memory.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}; 1 runs everything in one process")
    arguments = (load, batch_size, prompt_bytes)
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start, initargs=arguments)
    try:
        waiting: set[Future[Row]] = {pool.submit(_run, cell) for cell in cells}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "a process of the sweep was killed, most likely for want of memory; finished rows are kept. Give fewer "
            "--processes, a smaller --batch-size or shorter --lengths, and run the same command again."
        ) from error
    finally:
        workers = list(pool._processes.values()) if pool._processes else []
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()  # a cell that nobody waits for any more may have minutes to go


def _start(load: Load, batch_size: int, prompt_bytes: int) -> None:
    """Makes a worker process ready."""
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _here = Runner(load, batch_size=batch_size, prompt_bytes=prompt_bytes)


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: a killed sweep must leave nothing behind."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(cell: Cell) -> Row:
    if _here is None:
        raise RuntimeError("the worker has no model: its start has failed")
    return _here.run(cell)
