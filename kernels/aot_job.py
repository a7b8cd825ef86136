"""What one ahead-of-time compile is: a configuration, a target, and what may be assumed of the arguments."""

from __future__ import annotations

from dataclasses import dataclass
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


def source_of(job: Job) -> tuple[Any, Any, dict[str, Any]]:
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

    source, target, options = source_of(job)
    backend = make_backend(target)
    chosen = repr(sorted(vars(backend.parse_options(options)).items()))
    chosen = chosen.replace(str(Path(triton.__file__).parent), "triton")
    environment = sorted(get_cache_invalidating_env_vars().items())
    return f"{triton_key()}-{source.hash()}-{backend.hash()}-{chosen}-{environment}"
