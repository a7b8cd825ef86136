"""The ahead-of-time check compiles, reads what the result needs, and refuses where it cannot compile."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvcompress.kernels import aot, aot_compile, aot_resources
from kvcompress.kernels.aot_budget import Budget, over_limits, read_budget, write_budget
from kvcompress.kernels.aot_compile import compile_all, compile_job
from kvcompress.kernels.aot_job import Job, attributes_of
from kvcompress.kernels.aot_record import read_record, write_record
from kvcompress.kernels.aot_resources import Resources, resources_of
from kvcompress.kernels.tiles import ARCHITECTURES
from tests.kernels.aot_examples import broken_kernel, compiles, configuration, job, outcome
from tests.source_tree import ROOT


class TestCompile:
    pytestmark = compiles

    @pytest.mark.parametrize("target", ARCHITECTURES)
    def test_small_kernel_fits_every_target(self, target: str) -> None:
        found = compile_job(job(target))
        assert found.error == ""
        assert found.resources is not None
        assert 0 < found.resources.registers < 64
        assert (found.resources.stack, found.resources.spills) == (0, 0)
        assert list(over_limits([found])) == []

    def test_spills_are_reported(self) -> None:
        (line,) = over_limits([compile_job(job("sm80", block=16384))])  # 512 values per thread, of 255 registers
        assert line.startswith("shift/shift_kernel [N16384] sm80/aligned: registers do not suffice")

    def test_alignment_changes_the_machine_code(self) -> None:
        aligned, unaligned = (aot_compile.compiled(job("sm80", aligned=aligned)) for aligned in (True, False))
        assert "v4" in aligned.asm["ptx"]
        assert "v4" not in unaligned.asm["ptx"]

    def test_error_of_the_compiler_is_one_line(self) -> None:
        broken = replace(
            configuration(), kernel=broken_kernel, signature={"x_ptr": "*fp32"}, constants={"BLOCK": 16}, divisible=()
        )
        found = compile_job(Job(configuration=broken, target="sm90", aligned=False))
        assert found.resources is None
        assert "no_such_name" in found.error
        assert "\n" not in found.error
        (line,) = over_limits([found])
        assert "does not compile" in line

    def test_arguments_must_be_covered(self) -> None:
        found = compile_job(job(constants={"BLOCKS": 128}))
        assert "missing ['BLOCK'], unknown ['BLOCKS']" in found.error

    def test_equal_compiles_run_once(self) -> None:
        twins = [job(), job(case="the same under another name"), job(divisible=()), job(aligned=False)]
        totals = set()
        found = compile_all(twins, 1, lambda done, total: totals.add(total))
        assert totals == {2}
        assert [each.job for each in found] == twins
        assert found[0].resources == found[1].resources
        assert found[2].resources == found[3].resources
        assert [each.seconds > 0 for each in found] == [True, False, True, False]


class TestResources:
    AMDGCN = """
    .private_segment_fixed_size: 16
    .vgpr_count:     132
    .vgpr_spill_count: 3
"""

    def test_amd_figures_come_from_the_metadata(self) -> None:
        kernel = SimpleNamespace(asm={"amdgcn": self.AMDGCN}, metadata=SimpleNamespace(shared=512))
        assert resources_of(kernel) == Resources(registers=132, shared=512, stack=16, spills=3)

    def test_nvidia_figures_are_the_largest_of_all_functions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = "Function a:\n  REG:40 STACK:8 SHARED:0 LOCAL:0\nFunction b:\n  REG:32 STACK:24 SHARED:0 LOCAL:4\n"
        monkeypatch.setattr(aot_resources, "_cuobjdump", lambda cubin: text)
        kernel = SimpleNamespace(asm={"cubin": b""}, metadata=SimpleNamespace(shared=0))
        assert resources_of(kernel) == Resources(registers=40, shared=0, stack=24, spills=4)

    def test_figure_that_is_not_there_is_an_error(self) -> None:
        kernel = SimpleNamespace(asm={"amdgcn": ".vgpr_count: 8"}, metadata=SimpleNamespace(shared=0))
        with pytest.raises(RuntimeError, match="no figure matches"):
            resources_of(kernel)


class TestAttributes:
    def test_unaligned_arguments_are_not_specialised(self) -> None:
        assert attributes_of(job("sm90", aligned=False)) == {}

    def test_aligned_arguments_are_multiples_of_16(self) -> None:
        aligned = ["tt.divisibility", 16]
        assert attributes_of(job("sm90", divisible=("x_ptr", "stride"))) == {(0,): [aligned], (3,): [aligned]}

    def test_amd_knows_small_tensors(self) -> None:
        found = attributes_of(job("gfx942", divisible=("x_ptr",)))
        assert found == {(0,): [["tt.divisibility", 16], ["tt.pointer_range", 32]], (1,): [["tt.pointer_range", 32]]}

    def test_unknown_argument_is_refused(self) -> None:
        with pytest.raises(ValueError, match="divisible must name arguments of the signature; got BLOCK"):
            attributes_of(job(divisible=("BLOCK",)))


class TestCommand:
    def test_interpreter_is_refused(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert aot.main([]) == 2
        assert "TRITON_INTERPRET=1 makes kernels plain Python" in capsys.readouterr().err

    def test_missing_triton_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(aot, "find_spec", lambda name: None)
        assert aot.main([]) == 2
        assert "triton is not installed" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [["--target", "sm70"], ["--operation", "none"], ["--jobs", "0"]])
    def test_unknown_choice_is_refused(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            aot.main(arguments)

    @compiles
    def test_other_versions_are_held_to_the_limits_only(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_budget(Budget(triton="3.6.0"), tmp_path / "budget.json")
        monkeypatch.setattr(aot, "read_budget", lambda: read_budget(tmp_path / "budget.json"))
        assert aot.held_to_budget([outcome()], "3.7.1", whole=True) == []
        assert "the budget is of Triton 3.6.0; Triton 3.7.1 is held to the hard limits only" in capsys.readouterr().out
        assert aot.held_to_budget([outcome()], "3.6.0", whole=True) != []

    @compiles
    def test_part_of_another_version_renews_nothing(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        budget, record = tmp_path / "budget.json", tmp_path / "record.json"
        monkeypatch.setattr(aot, "read_budget", lambda: read_budget(budget))
        monkeypatch.setattr(aot, "write_budget", lambda found: write_budget(found, budget))
        monkeypatch.setattr(aot, "read_record", lambda: read_record(record))
        monkeypatch.setattr(aot, "write_record", lambda found: write_record(found, record))
        assert aot.renewed([outcome()], ["one"], "3.7.1", whole=True) == []
        before = budget.read_bytes(), record.read_bytes()
        (line,) = aot.renewed([outcome(block=256)], ["two"], "3.9.0", whole=False)
        assert "a part of it cannot be updated alone" in line
        assert (budget.read_bytes(), record.read_bytes()) == before
        assert aot.renewed([outcome(block=256)], ["two"], "3.7.1", whole=False) == []
        assert set(read_record(record)) == {"one", "two"}
        assert aot.renewed([outcome(block=256)], ["two"], "3.9.0", whole=True) == []
        assert set(read_record(record)) == {"two"}

    @compiles
    @pytest.mark.slow
    def test_processes_compile_what_one_process_does(self, tmp_path: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "kvcompress.kernels.aot", "--operation", "select_top_k", "--target", "sm90"]
        reports = []
        for processes in ("1", "2"):
            file = tmp_path / processes
            done = subprocess.run(
                [*command, "--jobs", processes, "--json", str(file)],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode in (0, 1), done.stderr  # 1: over the budget, which is not the question here
            rows = json.loads(file.read_text())["outcomes"]
            reports.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
        assert reports[0] == reports[1] != []
        assert all(row["resources"] for row in reports[0])
