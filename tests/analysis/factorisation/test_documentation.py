"""The example of docs/factorisation.md runs as it stands."""

import re

import pytest

from tests.source_tree import ROOT


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "factorisation.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    exec(compile(code[1], "docs/factorisation.md", "exec"), {})
    error, ratio, important, random = map(float, capsys.readouterr().out.split())
    assert 0 < error < 1
    assert 0 < ratio < 1
    assert important < random
