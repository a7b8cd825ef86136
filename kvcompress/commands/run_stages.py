"""Tells the stages of a run as they go."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import typer

from kvcompress.commands.figures import three_digits


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """What a stage took, in seconds.

    Attributes:
        stage: its name.
        wall: by the clock.
        processor: of all threads of this process.
    """

    stage: str
    wall: float
    processor: float


@dataclass(slots=True)
class Stages:
    """The stages of a run.

    Attributes:
        silent: whether nothing is printed.
        times: what the finished ones took.
    """

    silent: bool
    times: list[StageTime] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Runs a stage and prints a line when it is through, or, on stderr, that it was stopped.

        Args:
            name: what is done, in a word or two.

        Yields:
            To be filled with what came of it.
        """
        told: list[str] = []
        wall, processor = time.perf_counter(), time.process_time()
        try:
            yield told
        except KeyboardInterrupt:
            if self.times:
                done = ", ".join(each.stage for each in self.times)
                typer.echo(f"stopped during: {name}; finished, with all files: {done}", err=True)
            raise
        finally:
            spent = StageTime(stage=name, wall=time.perf_counter() - wall, processor=time.process_time() - processor)
        self.times.append(spent)
        if not self.silent:
            typer.echo(f"{name}: {', '.join(told)} ({three_digits(spent.wall)} s)")
