"""Compiles kernels for targets that are not there, and reads what the result needs: registers, shared memory, stack.

Nothing runs: Triton's compiler needs no GPU. The figures come from the machine code itself, by ``cuobjdump`` for CUDA
and from the metadata that LLVM writes for AMD.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from kvcompress.kernels.configuration import COMPILE_OPTIONS, Configuration

ALIGNMENT: Final = 16  # what Triton specialises pointers and strides on
_GPU_TARGETS: Final[dict[str, tuple[str, int | str, int]]] = {
    "sm80": ("cuda", 80, 32),
    "sm90": ("cuda", 90, 32),
    "sm100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One compile.

    Attributes:
        configuration: kernel and compile-time arguments.
        target: one of ``tiles.ARCHITECTURES``.
        aligned: whether the arguments that can be are taken as multiples of 16 (on AMD then also: tensors below
            2 GB, which Triton addresses by other instructions).
    """

    configuration: Configuration
    target: str
    aligned: bool

    @property
    def kernel(self) -> str:
        """Operation and name of the kernel."""
        return f"{self.configuration.operation}/{self.configuration.kernel.__name__}"

    @property
    def specialisation(self) -> str:
        """Target and alignment: the column of the budget."""
        return f"{self.target}/{'aligned' if self.aligned else 'unaligned'}"

    @property
    def name(self) -> str:
        """The whole name, for messages."""
        return f"{self.kernel} [{self.configuration.case}] {self.specialisation}"

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two compiles that would give the same machine code."""
        wanted = self.configuration
        constants = sorted((name, repr(value)) for name, value in wanted.constants.items())
        attributes = repr(attributes_of(self))
        signature = tuple(wanted.signature.items())
        return (wanted.kernel, self.target, signature, tuple(constants), attributes, wanted.warps, wanted.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one program of a compiled kernel needs.

    Attributes:
        registers: per thread (AMD: vector registers).
        shared: bytes of shared memory.
        stack: bytes of memory per thread for what registers do not hold.
        spills: CUDA: bytes of local memory; AMD: spilled vector registers.
    """

    registers: int
    shared: int
    stack: int
    spills: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of a job: resources, or the error that kept it from compiling.

    Attributes:
        job: what was compiled.
        resources: what it needs; None where it does not compile.
        error: why not.
        seconds: that the compile took.
        recorded: whether the resources are those of an earlier, equal compile.
    """

    job: Job
    resources: Resources | None
    error: str = ""
    seconds: float = 0.0
    recorded: bool = False


def attributes_of(job: Job) -> dict[tuple[int], list[list[object]]]:
    """What the compiler may assume of a job's arguments, by their place among all arguments of the kernel.

    Raises:
        ValueError: a divisible argument that the kernel does not take at run time.
    """
    wanted = job.configuration
    unknown = sorted(set(wanted.divisible) - set(wanted.signature))
    if unknown:
        raise ValueError(f"divisible must name arguments of the signature; got {', '.join(unknown)}")
    if not job.aligned:
        return {}
    small = _GPU_TARGETS[job.target][0] == "hip"
    attributes: dict[tuple[int], list[list[object]]] = {}
    for place, name in enumerate(wanted.kernel.arg_names):
        assumed: list[list[object]] = [["tt.divisibility", ALIGNMENT]] if name in wanted.divisible else []
        if small and wanted.signature.get(name, "").startswith("*"):
            assumed.append(["tt.pointer_range", 32])
        if assumed:
            attributes[(place,)] = assumed
    return attributes


def compiled(job: Job) -> Any:
    """Compiles a job; returns Triton's compiled kernel.

    Raises:
        ValueError: signature and constants do not cover the kernel's arguments, each once.
        Exception: whatever Triton raises.
    """
    import triton

    source, target, options = _source_of(job)
    return triton.compile(source, target=target, options=options)


def compile_key(job: Job) -> str:
    """All that decides a job's machine code, which is what Triton's own cache goes by.

    Other than there, it does not matter in which folder Triton is installed (options for AMD name device libraries).

    Raises:
        ValueError: signature and constants do not cover the kernel's arguments, each once.
    """
    import triton
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.compiler.compiler import make_backend
    from triton.runtime.cache import triton_key

    source, target, options = _source_of(job)
    backend = make_backend(target)
    chosen = repr(sorted(vars(backend.parse_options(options)).items()))
    chosen = chosen.replace(str(Path(triton.__file__).parent), "triton")
    environment = sorted(get_cache_invalidating_env_vars().items())
    return f"{triton_key()}-{source.hash()}-{backend.hash()}-{chosen}-{environment}"


def _source_of(job: Job) -> tuple[Any, Any, dict[str, Any]]:
    """What Triton's compiler takes: source, target and options."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    wanted = job.configuration
    names = list(wanted.kernel.arg_names)
    given = [*wanted.signature, *wanted.constants]
    if sorted(given) != sorted(names):
        missing, unknown = sorted(set(names) - set(given)), sorted(set(given) - set(names))
        raise ValueError(f"signature and constants must cover each argument once; missing {missing}, unknown {unknown}")
    signature = {name: wanted.signature.get(name, "constexpr") for name in names}
    source = ASTSource(wanted.kernel, signature, constexprs=wanted.constants, attrs=attributes_of(job))
    options = {"num_warps": wanted.warps, "num_stages": wanted.stages, **COMPILE_OPTIONS}
    return source, GPUTarget(*_GPU_TARGETS[job.target]), options


def resources_of(kernel: Any) -> Resources:
    """Reads the resources of a compiled kernel.

    Raises:
        RuntimeError: the figures cannot be found in what the tools printed.
    """
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        return Resources(
            registers=_figure(r"\.vgpr_count:\s+(\d+)", text),
            shared=int(kernel.metadata.shared),
            stack=_figure(r"\.private_segment_fixed_size:\s+(\d+)", text),
            spills=_figure(r"\.vgpr_spill_count:\s+(\d+)", text),
        )
    text = _cuobjdump(kernel.asm["cubin"])
    return Resources(
        registers=_figure(r"\bREG:(\d+)", text),
        shared=int(kernel.metadata.shared),
        stack=_figure(r"\bSTACK:(\d+)", text),
        spills=_figure(r"\bLOCAL:(\d+)", text),
    )


def compile_job(job: Job) -> Outcome:
    """Compiles a job in this process; an error of the compiler becomes part of the outcome."""
    start = time.perf_counter()
    try:
        return Outcome(job=job, resources=resources_of(compiled(job)), seconds=time.perf_counter() - start)
    except Exception as error:  # the compiler may raise anything, and the check goes on with the other jobs
        return Outcome(job=job, resources=None, error=_one_line(error), seconds=time.perf_counter() - start)


def compile_all(jobs: Sequence[Job], processes: int, progress: Callable[[int, int], None]) -> list[Outcome]:
    """Compiles jobs, each distinct one once.

    Args:
        jobs: what to compile; those with equal identity share one compile, and the first of them its seconds.
        processes: 1 compiles in this process; more are forked from it, so that imports are done once.
        progress: called with the number of compiles done and that of all.

    Returns:
        One outcome per job, in the order of the jobs.
    """
    identities = [job.identity for job in jobs]
    distinct: dict[tuple[object, ...], Job] = {}
    for identity, job in zip(identities, jobs, strict=True):
        distinct.setdefault(identity, job)
    # The slow ones first: no process is then left alone with one of them at the end.
    ordered = sorted(distinct, key=lambda identity: -_weight(distinct[identity]))
    work = [distinct[identity] for identity in ordered]
    found: dict[tuple[object, ...], Outcome] = {}
    for done, (index, outcome) in enumerate(_outcomes(work, processes), start=1):
        found[ordered[index]] = outcome
        progress(done, len(work))
    outcomes = []
    for identity, job in zip(identities, jobs, strict=True):
        first = found[identity]
        seconds = first.seconds if first.job is job else 0.0
        outcomes.append(Outcome(job=job, resources=first.resources, error=first.error, seconds=seconds))
    return outcomes


_WORK: list[Job] = []  # what forked processes inherit: a kernel cannot be pickled


def _compile_index(index: int) -> tuple[Resources | None, str, float]:
    outcome = compile_job(_WORK[index])
    return outcome.resources, outcome.error, outcome.seconds


def _outcomes(work: list[Job], processes: int) -> Iterator[tuple[int, Outcome]]:
    """Yields (index, outcome) as compiles end."""
    if processes == 1:
        yield from ((index, compile_job(job)) for index, job in enumerate(work))
        return
    _WORK[:] = work
    crashed = []
    for index, outcome in _pooled(range(len(work)), min(processes, max(len(work), 1))):
        if outcome is None:
            crashed.append(index)
        else:
            yield index, outcome
    # A compiler that dies takes its pool along: what was left then goes on alone, each in a process of its own.
    for index in crashed:
        for _, outcome in _pooled([index], 1):
            dead = Outcome(job=work[index], resources=None, error="the compiler's process died")
            yield index, outcome or dead


def _pooled(indices: Sequence[int], processes: int) -> Iterator[tuple[int, Outcome | None]]:
    """Yields (index, outcome), None where the process died."""
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        futures = {pool.submit(_compile_index, index): index for index in indices}
        for future in as_completed(futures):
            index = futures[future]
            try:
                resources, error, seconds = future.result()
            except BrokenProcessPool:
                yield index, None
            else:
                yield index, Outcome(job=_WORK[index], resources=resources, error=error, seconds=seconds)


def _weight(job: Job) -> int:
    """A rough measure of how long a compile takes: sizes of the tile; float32 products unroll."""
    sizes = sum(value for value in job.configuration.constants.values() if type(value) is int)
    return sizes * (4 if next(iter(job.configuration.signature.values()), "") == "*fp32" else 1)


def _cuobjdump(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _figure(pattern: str, text: str) -> int:
    """The largest match: a binary may hold several functions."""
    figures = [int(figure) for figure in re.findall(pattern, text)]
    if not figures:
        raise RuntimeError(f"no figure matches {pattern!r} in the description of the binary: {text[-300:]!r}")
    return max(figures)


def _one_line(error: BaseException) -> str:
    """First and last line of the root of an error: Triton's messages have the place first and the reason last."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ends = lines if len(lines) < 3 else [lines[0], lines[-1]]
    return ": ".join([type(error).__name__, *ends])[:500]
