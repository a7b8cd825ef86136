"""What the ahead-of-time check compiles, whether that is every kernel, and how it is told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvcompress.kernels import aot, aot_coverage, aot_report
from kvcompress.kernels.aot_job import attributes_of
from kvcompress.kernels.tiles import ARCHITECTURES
from tests.kernels.aot_examples import compiles, job, outcome


class TestCoverage:
    SOURCE = """
import triton
from triton import jit

@triton.jit
def helper(x):
    return x

@triton.jit(do_not_specialize=["n"])
def _first_kernel(x_ptr, n):
    return helper(x_ptr)

@jit
def _second_kernel(x_ptr):
    _first_kernel(x_ptr, 1)

@triton.jit
def unused(x):
    return x

def host():
    unused(1)
"""

    @pytest.fixture
    def sources(self, tmp_path: Path) -> dict[str, Path]:
        for name, text in (("one", self.SOURCE), ("two", "import triton\n\n@triton.jit\ndef shared(x):\n    pass\n")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "kernel.py").write_text(text)
        (tmp_path / "three").mkdir()
        return aot_coverage.operations(tmp_path)

    def test_operations_are_the_folders_with_a_kernel(self, sources: dict[str, Path]) -> None:
        assert list(sources) == ["one", "two"]

    def test_entry_points_are_kernels_and_what_nobody_calls(self, sources: dict[str, Path]) -> None:
        expected = {"one": {"_first_kernel", "_second_kernel", "unused"}, "two": {"shared"}}
        assert aot_coverage.entry_points(sources) == expected

    def test_helper_of_another_operation_is_no_entry_point(self, sources: dict[str, Path]) -> None:
        call = "\n@triton.jit\ndef _third_kernel(x):\n    shared(x)\n"
        sources["one"].write_text(self.SOURCE + call)
        assert aot_coverage.entry_points(sources)["two"] == set()

    def test_kernel_without_configuration_is_named(self, sources: dict[str, Path]) -> None:
        assert aot_coverage.uncovered(sources, [], ["two"]) == ["two/shared"]

    def test_name_of_two_compiles_is_ambiguous(self) -> None:
        assert aot_coverage.ambiguous([job(), job(warps=2)]) == ["shift/shift_kernel [N128] sm90/aligned"]
        assert aot_coverage.ambiguous([job(), job(), job(aligned=False), job("sm80", warps=2)]) == []

    def test_operation_without_configurations_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"kernels/nothing/kernel\.py has no configurations\.py beside it"):
            aot_coverage.configurations_of("nothing", "sm80")

    @compiles
    @pytest.mark.parametrize("target", ARCHITECTURES)
    def test_every_kernel_of_the_project_is_compiled(self, target: str) -> None:
        jobs, problems = aot.collect(list(aot_coverage.operations()), [target])
        assert problems == []
        assert {each.target for each in jobs} == {target}
        assert all(attributes_of(each) for each in jobs if each.aligned), "aligned compiles that assume nothing"


class TestReport:
    OUTCOMES = (outcome("sm80", registers=90), outcome("sm80", block=256, shared=2048), outcome("sm90", stack=56))

    def test_text_has_the_worst_of_each_kernel_and_target(self) -> None:
        _, first, second = aot_report.text_table(self.OUTCOMES).splitlines()
        assert first.split() == ["shift/shift_kernel", "sm80", "2", "90", "2.0", "0", "0", "0.5", "N128", "aligned"]
        assert second.split()[:7] == ["shift/shift_kernel", "sm90", "1", "64", "1.0", "56", "0"]

    def test_markdown_has_a_column_per_target(self) -> None:
        failed = replace(outcome("sm90"), resources=None, error="no")
        table = aot_report.markdown_table([*self.OUTCOMES, failed], "3.7.1", 2)
        head, *_, row = table.strip().splitlines()
        assert head.startswith("Triton 3.7.1: 4 variants in 3 compiles; 1 do not compile, 1 spill, 2 problems.")
        assert row == "| `shift_kernel` | 4 | 90 / 2 | 64 / 1 |"

    def test_json_has_every_figure(self) -> None:
        report = json.loads(aot_report.json_report(self.OUTCOMES, "3.7.1", ["spills"]))
        assert (report["triton"], report["problems"]) == ("3.7.1", ["spills"])
        assert [row["resources"]["registers"] for row in report["outcomes"]] == [90, 64, 64]

    def test_what_many_variants_share_takes_one_line(self) -> None:
        same = [f"shift/shift_kernel [N{n}] sm90/aligned: does not compile: why" for n in range(4)]
        other = "shift/shift_kernel [N0] sm80/aligned: does not compile: another reason"
        assert aot_report.folded([*same, other]) == [
            "shift/shift_kernel: does not compile: why (4 variants, the first is [N0] sm90/aligned)",
            other,
        ]
        assert aot_report.folded(same[:3]) == same[:3]
