"""The list of engine tests that run on the interpreted kernels: it names what exists, and leaves no file out unsaid."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.source_tree import ROOT

LIST = Path(__file__).with_name("engine_on_kernels.txt")
ENGINE = ROOT / "tests" / "kvcompress" / "engine"


def listed() -> dict[str, list[str]]:
    """Names of tests by file; a file that is left out has the reason in place of names."""
    entries: dict[str, list[str]] = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if head := re.fullmatch(r"(test_\w+\.py)(?:: (.+))?", line):
            entries[head[1]] = [] if head[2] is None else [head[2]]
        elif name := re.fullmatch(r"  (test_\w+(?:\[[\w.+-]+\])?)", line):
            list(entries.values())[-1].append(name[1])
    return entries


def test_every_file_has_a_test_or_a_reason() -> None:
    entries = listed()
    assert sorted(entries) == sorted(path.name for path in ENGINE.glob("test_*.py"))
    assert all(entries.values()), [file for file, names in entries.items() if not names]


def test_every_name_is_collected_in_its_file() -> None:
    command = [sys.executable, "-m", "pytest", str(ENGINE), "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stdout
    collected = re.findall(r"^\S*/(test_\w+\.py)::(\S+)$", found, re.MULTILINE)
    known = {*collected, *((file, name.partition("[")[0]) for file, name in collected)}
    wanted = {(file, name) for file, names in listed().items() for name in names if " " not in name}
    assert wanted
    assert wanted <= known, sorted(wanted - known)


def test_every_indented_line_is_understood() -> None:
    # `make test` takes indented lines that start with test_; any other would be lost in silence.
    lines = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line.startswith(" ")]
    names = [name for names in listed().values() for name in names if " " not in name]
    assert [line.strip() for line in lines] == names
    assert len(set(names)) == len(names)
