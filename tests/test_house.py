"""Guards of the house: nothing machine-bound, unsafe or large, and a README that says how to start."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source_tree import ROOT, library_sources, parsed, project_files, where

LARGEST_FILE = 9_000_000  # bytes

# A path of one machine, or a package index. The pattern must not match its own source, hence the brackets.
MACHINE_BOUND = re.compile(
    r"(?<![\w.:/-])/(?:[w]ork|[h]ome|[r]oot|[m]nt|[o]pt|[U]sers|[s]cratch)\b(?=/|['\"`\s]|$)"
    r"|\.\./[s]hared\b"
    r"|[f]iles\.pythonhosted\.org|[d]ownload\.pytorch\.org|[p]ypi\.org/simple"
    r"|(?:[i]ndex-url|[f]ind-links)[ =]",
    re.MULTILINE,
)


def text_of(path: Path) -> str | None:
    """Return a file's text, or None where it is not text."""
    data = path.read_bytes()
    if b"\0" in data[:8192]:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def library_nodes() -> Iterator[tuple[Path, ast.AST]]:
    """Yield every node of the library; benchmarks run by pytest (bench_*.py) are tests, not library."""
    for path in library_sources().values():
        if not path.name.startswith("bench_"):
            for node in ast.walk(parsed(path)):
                yield path, node


def unsafe_load(node: ast.AST) -> str | None:
    """Return what is unsafe about a call that reads a file, or None."""
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}

    def states(name: str, value: bool) -> bool:
        found = keywords.get(name)
        return isinstance(found, ast.Constant) and found.value is value

    if called in {
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "cloudpickle.load",
        "dill.load",
        "joblib.load",
    }:
        return f"{called} runs what the file says; write safetensors or JSON"
    if called == "torch.load" and not states("weights_only", True):
        return "torch.load without weights_only=True runs what the file says"
    if called in {"numpy.load", "np.load"} and "allow_pickle" in keywords and not states("allow_pickle", False):
        return f"{called} with allow_pickle runs what the file says"
    return None


def test_no_file_is_bound_to_a_machine() -> None:
    found = []
    for path in project_files():
        for match in MACHINE_BOUND.finditer(text_of(path) or ""):
            line = (text_of(path) or "").count("\n", 0, match.start()) + 1
            found.append(f"{where(path)}:{line}: {match.group()}")
    assert not found, "paths of one machine, or addresses of a package index:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("/" + "work/main/x.py", True),
        ("see '../" + "shared/design'", True),
        ("cache in /" + "home/ann/models", True),
        ("pip install --index" + "-url https://example.org", True),
        ("https://example.org/" + "home/index.html", False),
        ("tokens/" + "work per step", False),
        ("a/" + "workload", False),
    ],
)
def test_machine_bound_text_is_told_apart(text: str, bound: bool) -> None:
    assert (MACHINE_BOUND.search(text) is not None) is bound


def test_library_loads_nothing_that_can_run_code() -> None:
    found = [f"{where(path, node)}: {unsafe_load(node)}" for path, node in library_nodes() if unsafe_load(node)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "unsafe"),
    [
        ("pickle.load(file)", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
        ("json.load(file)", False),
    ],
)
def test_unsafe_load_is_told_apart(code: str, unsafe: bool) -> None:
    assert bool(unsafe_load(ast.parse(code, mode="eval").body)) is unsafe


def test_library_raises_instead_of_asserting() -> None:
    # `python -O` removes assert statements, and their messages name neither the argument nor the way out.
    found = [where(path, node) for path, node in library_nodes() if isinstance(node, ast.Assert)]
    assert not found, f"raise ValueError or TypeError in place of assert: {found}"


def test_kernels_use_no_block_pointers() -> None:
    name = "make_block_" + "ptr"
    found = [where(path, node) for path, node in library_nodes() if getattr(node, "attr", None) == name]
    assert not found, f"{name} is deprecated by Triton; use pointers or tensor descriptors: {found}"


def test_no_file_is_large() -> None:
    large = {where(path): path.stat().st_size for path in project_files() if path.stat().st_size > LARGEST_FILE}
    assert not large, f"larger than {LARGEST_FILE} bytes: {large}"


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_says_how_to_start(command: str) -> None:
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


def test_constraints_pin_every_dependency() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    development = re.search(r"^dev = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    assert listed is not None
    assert development is not None
    names = set(re.findall(r'^\s*"([A-Za-z0-9-]+)', listed[1] + development[1], re.MULTILINE))
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([a-z0-9-]+)==[^+\s]+(?: ;.*)?$", constraints, re.MULTILINE))
    assert {"torch", "triton", "transformers", "numpy", "pytest"} <= names
    assert names <= pinned, f"constraints.txt does not pin {sorted(names - pinned)}"
