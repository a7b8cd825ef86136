"""Watches what the programs of interpreted kernels read and write, and runs them in any order.

Triton's interpreter runs the programs of a launch one after another, each as if by one thread, so a race gives the
right result there. It is found all the same by the addresses:

- programs that run side by side on a GPU may share only what none of them writes, what all of them change by atomic
  operations, or what one wrote before it released, and another read after it acquired, the same counter;
- the threads of a program may read and write the same elements only with a barrier between, or by the same pointers,
  which give each thread elements of its own;
- an address outside the tensors that a launch was given belongs to somebody else.

What is not seen is the order in which the memory of a GPU shows writes. Elements are told apart by their first byte.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, product
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

READ, WRITE, ATOMIC = "reads", "writes", "changes atomically"
Grid = tuple[int, int, int]
Order = Callable[[list[Grid]], list[Grid]]
NONE = np.empty(0, np.uint64)


class Access(NamedTuple):
    """Some elements touched by a program, at a time when it knew what ``known`` says of the others.

    Attributes:
        program: the program's number in the order in which they run.
        epoch: how often it had released before.
        known: by program, the last of its epochs whose accesses all come before this one.
        phase: how many barriers the program's threads had passed.
        threads: equal where elements fall to the same threads: a tile's pointers. All threads read a scalar, so its
            reads are equal, and some one of them writes it, so each write is its own.
        kind: READ, WRITE or ATOMIC.
        past_l1: whether it does without the first-level cache, which does not see what others write.
        addresses: of the elements, uint64.
    """

    program: int
    epoch: int
    known: dict[int, int]
    phase: int
    threads: Hashable
    kind: str
    past_l1: bool
    addresses: np.ndarray


@dataclass
class Launch:
    """One launch: its grid, its tensors' memory, and all accesses so far."""

    kernel: str
    memory: list[tuple[int, int]] = field(default_factory=list)
    grid: list[Grid] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    program: int = -1
    epoch: int = 0
    phase: int = 0
    known: dict[int, int] = field(default_factory=dict)
    released: dict[int, dict[int, int]] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)

    def begin_program(self) -> None:
        self.program, self.epoch, self.phase, self.known = self.program + 1, 0, 0, {}

    def touch(self, kind: str, pointers: Any, mask: Any, *, past_l1: bool = False) -> None:
        """Notes an access; ``pointers`` and ``mask`` are handles of the interpreter."""
        addresses = pointers.data[mask.data.astype(bool)]
        if addresses.size == 0:
            return
        self._check_bounds(kind, addresses, pointers.get_element_ty().primitive_bitwidth // 8)
        scalar = READ if kind == READ else len(self.accesses)
        threads = pointers.data.tobytes() if pointers.data.size > 1 else scalar
        now = (self.program, self.epoch, self.known, self.phase)
        self.accesses.append(Access(*now, threads, kind, past_l1, addresses))

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
            self.strays.append(f"a program {kind} {int((~inside).sum())} elements outside its tensors")

    def problems(self) -> list[str]:
        """All that must not be, in words."""
        found = [*self.strays, *_races(self.accesses), *_hazards(self.accesses)]
        return [f"{self.kernel}: {problem}" for problem in dict.fromkeys(found)]


def _races(accesses: list[Access]) -> Iterator[str]:
    """What programs do to each other's elements without an order between them."""
    shared = _shared(accesses)
    history: dict[int, list[Access]] = {}
    for access in accesses if shared.size else []:
        for address in _among(access.addresses, shared):
            yield from _clashes(history.setdefault(address, []), access)


def _shared(accesses: list[Access]) -> np.ndarray:
    """Addresses that several programs touch, at least one of which writes, unless all do so atomically."""
    changed = [access.addresses for access in accesses if access.kind != READ]
    plain = [access.addresses for access in accesses if access.kind != ATOMIC]
    candidates = np.intersect1d(np.concatenate([NONE, *changed]), np.concatenate([NONE, *plain]))
    return _touched_by_several(accesses, lambda access: access.program, candidates)


def _clashes(earlier: list[Access], access: Access) -> Iterator[str]:
    """How an access clashes with earlier ones of an element, to which it is added."""
    for other in earlier:
        if other.program == access.program or {other.kind, access.kind} in ({READ}, {ATOMIC}):
            continue
        if access.known.get(other.program, -1) < other.epoch:
            yield f"one program {other.kind} and another {access.kind} the same elements, in no order"
        elif access.kind == READ and not access.past_l1:
            yield "a program reads through the first-level cache what another wrote in this launch"
    earlier.append(access)


def _hazards(accesses: list[Access]) -> Iterator[str]:
    """What threads of one program do to each other's elements with no barrier between."""
    for _, group in groupby(accesses, key=lambda access: (access.program, access.phase)):
        plain = [access for access in group if access.kind != ATOMIC]
        written = np.unique(np.concatenate([NONE, *(access.addresses for access in plain if access.kind == WRITE)]))
        if written.size and _touched_by_several(plain, lambda access: access.threads, written).size:
            yield "threads of a program read or write each other's elements, with no barrier between"


def _touched_by_several(accesses: list[Access], by: Callable[[Access], Hashable], addresses: np.ndarray) -> np.ndarray:
    """Those of some addresses that accesses of several kinds ``by`` touch."""
    if not addresses.size:
        return NONE
    numbers: dict[Hashable, int] = {}
    kinds = [numbers.setdefault(by(access), len(numbers)) for access in accesses]
    if len(numbers) < 2:
        return NONE
    kind = np.repeat(kinds, [access.addresses.size for access in accesses])
    address = np.concatenate([access.addresses for access in accesses])
    among = np.isin(address, addresses)
    kind, address = kind[among], address[among]
    order = np.lexsort((kind, address))
    kind, address = kind[order], address[order]
    first = np.append(True, (kind[1:] != kind[:-1]) | (address[1:] != address[:-1]))
    touched, times = np.unique(address[first], return_counts=True)
    return touched[times > 1]


def _among(addresses: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return addresses[np.isin(addresses, wanted)]


@dataclass
class Watch:
    """What was seen of all launches.

    Attributes:
        problems: accesses that must not be, in words, each once.
        programs: by kernel, the most programs of one launch.
    """

    problems: list[str] = field(default_factory=list)
    programs: Counter[str] = field(default_factory=Counter)

    def add(self, launch: Launch) -> None:
        self.problems = list(dict.fromkeys([*self.problems, *launch.problems()]))
        self.programs |= Counter({launch.kernel: len(launch.grid)})


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
    """Watches all launches of the block; their programs run in the given order."""
    from triton.runtime import interpreter

    watch = Watch()
    launches: list[Launch] = []
    executor, builder = interpreter.GridExecutor, interpreter.interpreter_builder
    with (
        patch.multiple(executor, **_launching(executor, launches, watch)),
        patch.multiple(builder, **_touching(builder, launches), **_ordering(builder, launches, order)),
    ):
        yield watch


def _launching(executor: Any, launches: list[Launch], watch: Watch) -> dict[str, Any]:
    """Methods of the interpreter that begin and end a launch, and find its tensors."""
    run, place = executor.__call__, executor._init_args_hst

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        launches.append(Launch(self.fn.__name__))
        try:
            run(self, *args, **kwargs)
        finally:
            watch.add(launches.pop())

    def arguments(self: Any, args: Any, kwargs: Any) -> Any:
        placed = place(self, args, kwargs)
        storages = [x.untyped_storage() for x in (*placed[0], *placed[1].values()) if hasattr(x, "untyped_storage")]
        launches[-1].memory += [(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages]
        return placed

    return {"__call__": launch, "_init_args_hst": arguments}


def _touching(builder: Any, launches: list[Launch]) -> dict[str, Any]:
    """Methods of the interpreter that touch memory or synchronise."""
    read, write, change = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def load(pointers: Any, mask: Any, other: Any, cache: Any, *rest: Any) -> Any:
        launches[-1].touch(READ, pointers, mask, past_l1=str(cache).rpartition(".")[2].lower() in ("cg", "cv"))
        return read(pointers, mask, other, cache, *rest)

    def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launches[-1].touch(WRITE, pointers, mask)
        return write(pointers, value, mask, *rest)

    def atomic(operation: Any, pointers: Any, value: Any, mask: Any, semantics: Any, scope: Any) -> Any:
        launches[-1].touch(ATOMIC, pointers, mask)
        if "RELAXED" not in str(semantics).upper():
            for address in pointers.data[mask.data.astype(bool)]:
                launches[-1].synchronise(int(address))
        return change(operation, pointers, value, mask, semantics, scope)

    def barrier() -> None:
        launches[-1].phase += 1

    return {
        "create_masked_load": load,
        "create_masked_store": store,
        "create_atomic_rmw": atomic,
        "create_barrier": barrier,
    }


def _ordering(builder: Any, launches: list[Launch], order: Order) -> dict[str, Any]:
    """Methods of the interpreter that say which program runs."""
    size, choose = builder.set_grid_dim, builder.set_grid_idx

    def set_grid_dim(*sizes: int) -> None:
        size(*sizes)
        launches[-1].grid = order(list(product(*map(range, sizes))))

    def set_grid_idx(*_: int) -> None:
        launches[-1].begin_program()
        choose(*launches[-1].grid[launches[-1].program])

    return {"set_grid_dim": set_grid_dim, "set_grid_idx": set_grid_idx}
