"""Watches what the programs of interpreted kernels read and write, and runs them in any order.

Triton's interpreter runs the programs of a launch one after another, so a race gives the right result there. It is
found all the same by the addresses: programs that run side by side on a GPU may share only what none of them writes,
what all of them change by atomic operations, or what one wrote before it released, and another read after it acquired,
the same counter. And an address outside the tensors that a launch was given belongs to somebody else.

What threads of one program do to each other is not seen, nor is the order in which a GPU's memory shows writes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

READ, WRITE, ATOMIC = "reads", "writes", "changes atomically"
Grid = tuple[int, int, int]
Order = Callable[[list[Grid]], list[Grid]]


class Access(NamedTuple):
    """Some addresses touched by a program, at a time when it knew what ``known`` says of the others.

    Attributes:
        program: the program's number in the order in which they run.
        epoch: how often it had released before.
        known: by program, the last of its epochs whose accesses all come before this one.
        kind: READ, WRITE or ATOMIC.
        past_l1: whether it does without the first-level cache, which does not see what others write.
        addresses: of the elements, uint64.
    """

    program: int
    epoch: int
    known: dict[int, int]
    kind: str
    past_l1: bool
    addresses: np.ndarray


@dataclass
class Launch:
    """One launch: its grid, its tensors' memory, and all accesses so far."""

    kernel: str
    memory: list[tuple[int, int]]
    grid: list[Grid] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    program: int = -1
    epoch: int = 0
    known: dict[int, int] = field(default_factory=dict)
    released: dict[int, dict[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def begin_program(self) -> None:
        self.program, self.epoch, self.known = self.program + 1, 0, {}

    def touch(self, kind: str, pointers: Any, mask: Any, *, past_l1: bool = False) -> None:
        """Notes an access; ``pointers`` and ``mask`` are handles of the interpreter."""
        addresses = pointers.data[mask.data.astype(bool)]
        if addresses.size == 0:
            return
        self._check_bounds(kind, addresses, pointers.get_element_ty().primitive_bitwidth // 8)
        self.accesses.append(Access(self.program, self.epoch, self.known, kind, past_l1, addresses))

    def synchronise(self, address: int) -> None:
        """An atomic operation that acquires and releases: learns what was released there, and adds what it did."""
        there = self.released.setdefault(address, {})
        self.known = {**self.known, **there}
        there.update(self.known)
        there[self.program] = self.epoch
        self.epoch += 1

    def _check_bounds(self, kind: str, addresses: np.ndarray, width: int) -> None:
        inside = np.zeros(addresses.shape, bool)
        for start, end in self.memory:
            inside |= (addresses >= start) & (addresses + np.uint64(width) <= end)
        if not inside.all():
            count = int((~inside).sum())
            self.problems.append(f"{self.kernel}: program {self.program} {kind} {count} elements outside its tensors")

    def races(self) -> Iterator[str]:
        """What programs do to each other's elements without an order between them."""
        shared = _shared(self.accesses)
        history: dict[int, list[Access]] = {}
        for access in self.accesses if shared.size else []:
            found = {
                problem
                for address in _among(access.addresses, shared)
                for problem in _clashes(history, access, address)
            }
            yield from (f"{self.kernel}: {problem}" for problem in sorted(found))


def _shared(accesses: list[Access]) -> np.ndarray:
    """Addresses that several programs touch, at least one of which writes, unless all do so atomically."""
    if len({access.program for access in accesses}) < 2:
        return np.empty(0, np.uint64)
    changed = [access.addresses for access in accesses if access.kind != READ]
    plain = [access.addresses for access in accesses if access.kind != ATOMIC]
    if not changed or not plain:
        return np.empty(0, np.uint64)
    candidates = np.intersect1d(np.concatenate(changed), np.concatenate(plain))
    by_program: dict[int, list[np.ndarray]] = {}
    for access in accesses:
        by_program.setdefault(access.program, []).append(_among(access.addresses, candidates))
    distinct = [np.unique(np.concatenate(parts)) for parts in by_program.values()]
    addresses, programs = np.unique(np.concatenate(distinct), return_counts=True)
    return addresses[programs > 1]


def _among(addresses: np.ndarray, sorted_set: np.ndarray) -> np.ndarray:
    return addresses[np.isin(addresses, sorted_set)]


def _clashes(history: dict[int, list[Access]], access: Access, address: int) -> Iterator[str]:
    """Earlier accesses of an address that this one clashes with; the address's history then has this one too."""
    earlier = history.setdefault(address, [])
    for other in earlier:
        if other.program == access.program or {other.kind, access.kind} in ({READ}, {ATOMIC}):
            continue
        if access.known.get(other.program, -1) < other.epoch:
            yield f"one program {other.kind} and another {access.kind} the same elements, in no order"
        elif access.kind == READ and not access.past_l1:
            yield "a program reads through the first-level cache what another wrote in this launch"
    earlier.append(access)


@dataclass
class Watch:
    """What was seen of all launches.

    Attributes:
        problems: accesses that must not be, in words.
        programs: by kernel, the most programs of one launch.
    """

    problems: list[str] = field(default_factory=list)
    programs: dict[str, int] = field(default_factory=dict)


def forward(grid: list[Grid]) -> list[Grid]:
    """The interpreter's own order."""
    return grid


def backward(grid: list[Grid]) -> list[Grid]:
    """The last program first."""
    return grid[::-1]


def shuffled(seed: int) -> Order:
    """A random order of each launch's programs."""
    generator = random.Random(seed)
    return lambda grid: generator.sample(grid, len(grid))


@contextmanager
def watched(order: Order = forward) -> Iterator[Watch]:
    """Watches all launches of the block; its programs run in the given order."""
    from triton.runtime import interpreter

    watch = Watch()
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    launches: list[Launch] = []
    plain = {name: getattr(builder, name) for name in ("create_masked_load", "create_masked_store")}
    plain |= {name: getattr(builder, name) for name in ("create_atomic_rmw", "set_grid_dim", "set_grid_idx")}

    def load(pointers: Any, mask: Any, other: Any, cache: Any, *rest: Any) -> Any:
        launches[-1].touch(READ, pointers, mask, past_l1=str(cache).rpartition(".")[2].lower() in ("cg", "cv"))
        return plain["create_masked_load"](pointers, mask, other, cache, *rest)

    def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].touch(WRITE, pointers, mask)
        return plain["create_masked_store"](pointers, value, mask, *rest)

    def atomic(operation: Any, pointers: Any, value: Any, mask: Any, semantics: Any, scope: Any) -> Any:
        launches[-1].touch(ATOMIC, pointers, mask)
        if "RELAXED" not in str(semantics).upper():
            for address in pointers.data[mask.data.astype(bool)]:
                launches[-1].synchronise(int(address))
        return plain["create_atomic_rmw"](operation, pointers, value, mask, semantics, scope)

    def set_grid_dim(*sizes: int) -> None:
        plain["set_grid_dim"](*sizes)
        launches[-1].grid = order(list(product(*map(range, sizes))))

    def set_grid_idx(*_: int) -> None:
        launches[-1].begin_program()
        plain["set_grid_idx"](*launches[-1].grid[launches[-1].program])

    run, place = executor.__call__, executor._init_args_hst

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        launches.append(Launch(self.fn.__name__, []))
        try:
            run(self, *args, **kwargs)
        finally:
            ended = launches.pop()
            watch.problems += [*ended.problems, *ended.races()]
            watch.programs[ended.kernel] = max(watch.programs.get(ended.kernel, 0), len(ended.grid))

    def arguments(self: Any, args: Any, kwargs: Any) -> Any:
        placed = place(self, args, kwargs)
        storages = [x.untyped_storage() for x in (*placed[0], *placed[1].values()) if hasattr(x, "untyped_storage")]
        launches[-1].memory += [(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages]
        return placed

    with (
        patch.multiple(executor, __call__=launch, _init_args_hst=arguments),
        patch.multiple(
            builder,
            create_masked_load=load,
            create_masked_store=store,
            create_atomic_rmw=atomic,
            set_grid_dim=set_grid_dim,
            set_grid_idx=set_grid_idx,
        ),
    ):
        yield watch
