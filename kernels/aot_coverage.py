"""What there is to compile: the configurations of all operations, and the kernels that none of them names."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

from kvcompress.kernels.aot_job import Job
from kvcompress.kernels.configuration import Configuration

FOLDER = Path(__file__).parent


def operations(folder: Path = FOLDER) -> dict[str, Path]:
    """The operations that have a Triton kernel, with their ``kernel.py``."""
    return {path.parent.name: path for path in sorted(folder.glob("*/kernel.py"))}


def configurations_of(operation: str, architecture: str) -> list[Configuration]:
    """The configurations of an operation.

    Raises:
        ValueError: the operation has no ``configurations.py``.
    """
    name = f"kvcompress.kernels.{operation}.configurations"
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.rpartition(".")[0]):
            raise
        raise ValueError(f"kernels/{operation}/kernel.py has no configurations.py beside it") from error
    found: list[Configuration] = list(module.configurations(architecture))
    return found


def jobs_of(configurations: Iterable[Configuration], target: str) -> Iterator[Job]:
    """Yields each configuration twice, with aligned arguments and with arguments of which nothing is known."""
    for configuration in configurations:
        for aligned in (True, False):
            yield Job(configuration=configuration, target=target, aligned=aligned)


def ambiguous(jobs: Iterable[Job]) -> list[str]:
    """Names that two different compiles share: the budget could not tell them apart."""
    seen: dict[str, tuple[object, ...]] = {}
    return sorted({job.name for job in jobs if seen.setdefault(job.name, job.identity) != job.identity})


def entry_points(sources: Mapping[str, Path]) -> dict[str, set[str]]:
    """The kernels that launchers can start, by operation.

    Args:
        sources: ``kernel.py`` by operation.

    Returns:
        Functions under ``@triton.jit`` whose name ends in ``_kernel``, or that no such function calls: the others are
        helpers, which are compiled with their callers.
    """
    functions = {operation: dict(_jitted(path)) for operation, path in sources.items()}
    called = {name for each in functions.values() for names in each.values() for name in names}
    return {
        operation: {name for name in each if name.endswith("_kernel") or name not in called}
        for operation, each in functions.items()
    }


def uncovered(sources: Mapping[str, Path], jobs: Iterable[Job], chosen: Iterable[str]) -> list[str]:
    """Kernels of the chosen operations that no job compiles."""
    compiled = {job.kernel for job in jobs}
    points = entry_points(sources)
    names = (f"{operation}/{name}" for operation in sorted(chosen) for name in sorted(points[operation]))
    return [name for name in names if name not in compiled]


def _jitted(path: Path) -> Iterator[tuple[str, set[str]]]:
    """Yields each function under ``@triton.jit`` (with or without arguments) and the names that it calls."""
    for node in ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body:
        if isinstance(node, ast.FunctionDef) and any(_is_jit(decorator) for decorator in node.decorator_list):
            calls = (inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call))
            yield node.name, {function.id for function in calls if isinstance(function, ast.Name)}


def _is_jit(decorator: ast.expr) -> bool:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return (target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")) == "jit"
