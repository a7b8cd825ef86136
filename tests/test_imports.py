"""Guards of the direction of imports: bench -> analysis -> kvcompress -> kernels, and never in a circle."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.source_tree import LINKED, library_sources, parsed, where

LAYERS = {"kernels": 0, "kvcompress": 1, "analysis": 2, "bench": 3}
LAYER_NAMES = {height: name for name, height in LAYERS.items()}
COMPOSITION_ROOTS = ("kvcompress.cli", "kvcompress.commands")  # these may look upward, inside functions only
KERNELS_MAY_IMPORT = {"torch", "triton", "kvcompress"}


class Import(NamedTuple):
    """One imported name: where it stands, and whether it runs with its module, in a function, or never."""

    target: str
    node: ast.AST
    lazy: bool  # inside a function: runs when called
    typing_only: bool  # under `if TYPE_CHECKING:`: never runs


def layer_of(module: str) -> int:
    """Return the height of a module's folder."""
    parts = module.split(".")
    return LAYERS[parts[1]] if len(parts) > 1 and parts[1] in LINKED else LAYERS["kvcompress"]


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in {getattr(test, "id", None), getattr(test, "attr", None)}


def imports_of(
    node: ast.AST, modules: frozenset[str], lazy: bool = False, typing_only: bool = False
) -> Iterator[Import]:
    """Yield every import below `node`; `from a import b` counts as a.b where that is a module of ours."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node, lazy, typing_only)
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            yield Import(whole if whole in modules else base, node, lazy, typing_only)
    elif isinstance(node, ast.Call):
        called = getattr(node.func, "attr", getattr(node.func, "id", None))
        if called in {"import_module", "__import__"} and node.args and isinstance(node.args[0], ast.Constant):
            yield Import(str(node.args[0].value), node, lazy, typing_only)
    for name, value in ast.iter_fields(node):
        inner_lazy = lazy or (name == "body" and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))
        inner_typing = typing_only or (name == "body" and isinstance(node, ast.If) and _is_type_checking(node.test))
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from imports_of(child, modules, inner_lazy, inner_typing)


def all_imports() -> Iterator[tuple[str, Path, Import]]:
    """Yield (module, file, import) for the whole library."""
    sources = library_sources()
    modules = frozenset(sources)
    for module, path in sources.items():
        for found in imports_of(parsed(path), modules):
            yield module, path, found


def is_composition_root(module: str) -> bool:
    """Return whether a module may look upward."""
    return any(module == root or module.startswith(f"{root}.") for root in COMPOSITION_ROOTS)


def upward_imports(edges: list[tuple[str, Path, Import]]) -> list[str]:
    """Return a message for each import that points up and may not."""
    wrong = []
    for module, path, found in edges:
        if found.target.split(".")[0] != "kvcompress" or layer_of(found.target) <= layer_of(module):
            continue
        arrow = f"{LAYER_NAMES[layer_of(module)]} -> {LAYER_NAMES[layer_of(found.target)]} ({found.target})"
        if not is_composition_root(module):
            wrong.append(f"{where(path, found.node)}: {arrow} points up")
        elif not (found.lazy or found.typing_only):
            wrong.append(f"{where(path, found.node)}: {arrow} belongs inside the function that needs it")
    return wrong


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle, first repeated at the end, or [] where there is none."""
    done: set[str] = set()
    for start in sorted(graph):
        trail: list[str] = []
        open_nodes = [(start, iter(sorted(graph[start])))] if start not in done else []
        trail.extend(node for node, _ in open_nodes)
        while open_nodes:
            node, following = open_nodes[-1]
            nearest = next((n for n in following if n not in done), None)
            if nearest is None:
                done.add(node)
                open_nodes.pop()
                trail.pop()
            elif nearest in trail:
                return [*trail[trail.index(nearest) :], nearest]
            else:
                open_nodes.append((nearest, iter(sorted(graph[nearest]))))
                trail.append(nearest)
    return []


def test_imports_point_down() -> None:
    wrong = upward_imports(list(all_imports()))
    assert not wrong, "imports point down only, bench -> analysis -> kvcompress -> kernels:\n" + "\n".join(wrong)


def test_imports_have_no_cycle() -> None:
    # An import inside a function counts too: a circle that closes later is still one. One for types does not.
    graph: dict[str, set[str]] = {module: set() for module in library_sources()}
    for module, _, found in all_imports():
        if found.target in graph and found.target != module and not found.typing_only:
            graph[module].add(found.target)
    cycle = find_cycle(graph)
    assert not cycle, "these modules import each other: " + " -> ".join(cycle)


def test_imports_are_absolute_and_through_the_package() -> None:
    wrong = [
        f"{where(path, found.node)}: {found.target}"
        for _, path, found in all_imports()
        if found.target.startswith(".") or found.target.split(".")[0] in (*LINKED, "tests")
    ]
    assert not wrong, "write `from kvcompress.<folder>... import ...`:\n" + "\n".join(wrong)


def test_kernels_depend_on_torch_and_triton_only() -> None:
    wrong = [
        f"{where(path, found.node)}: {found.target}"
        for module, path, found in all_imports()
        if layer_of(module) == LAYERS["kernels"]
        and found.target.split(".")[0] not in KERNELS_MAY_IMPORT | sys.stdlib_module_names
    ]
    assert not wrong, "kernels/ stands on torch and triton alone:\n" + "\n".join(wrong)


class TestTheGuardsThemselves:
    """A guard that never fires guards nothing."""

    @staticmethod
    def edges(module: str, source: str) -> list[tuple[str, Path, Import]]:
        modules = frozenset({"kvcompress", "kvcompress.config", "kvcompress.analysis.plots"})
        path = Path(__file__)
        return [(module, path, found) for found in imports_of(ast.parse(source), modules)]

    @pytest.mark.parametrize(
        ("module", "source", "count"),
        [
            ("kvcompress.cache", "from kvcompress.analysis import plots", 1),
            ("kvcompress.cache", "def f():\n    import kvcompress.bench.sweep", 1),
            ("kvcompress.cache", "from importlib import import_module\nimport_module('kvcompress.bench')", 1),
            ("kvcompress.kernels.tiles", "import kvcompress.config", 1),
            (
                "kvcompress.analysis.plots",
                "from kvcompress.config import Config\nimport kvcompress.kernels",
                0,
            ),
            ("kvcompress.cli", "from kvcompress.analysis import plots", 1),
            ("kvcompress.cli", "def demo():\n    from kvcompress.analysis import plots", 0),
            ("kvcompress.commands.demo", "def demo():\n    from kvcompress.bench import sweep", 0),
            ("kvcompress.client", "def demo():\n    from kvcompress.bench import sweep", 1),
        ],
    )
    def test_upward_import_is_seen(self, module: str, source: str, count: int) -> None:
        assert len(upward_imports(self.edges(module, source))) == count

    def test_from_import_of_a_module_counts_as_that_module(self) -> None:
        targets = [found.target for _, _, found in self.edges("m", "from kvcompress import config, __version__")]
        assert targets == ["kvcompress.config", "kvcompress"]

    def test_cycle_is_found_and_its_absence_too(self) -> None:
        assert find_cycle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
        assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
