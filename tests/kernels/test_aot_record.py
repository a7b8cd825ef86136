"""Recorded compiles: taken over where nothing has changed, checked in part, and compiled where anything has."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvcompress.kernels import aot_compile, aot_record
from kvcompress.kernels.aot_compile import Outcome, compile_job
from kvcompress.kernels.aot_job import Job, compile_key
from kvcompress.kernels.aot_record import (
    CHECKED,
    compile_the_rest,
    contradictions,
    keys_of,
    read_record,
    recorded,
    write_record,
)
from kvcompress.kernels.aot_resources import Resources
from kvcompress.kernels.tiles import ARCHITECTURES
from tests.kernels.aot_examples import broken_kernel, compiles, configuration, job, outcome, triton

FOUND = Resources(registers=64, shared=1024, stack=0, spills=0)
pytestmark = compiles


def compiled_and_taken(
    jobs: list[Job], record: aot_record.Record, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Job], list[Outcome]]:
    """What was compiled, without a compiler, and all outcomes."""
    compiled: list[Job] = []

    def compile_none(left: list[Job], *_: object) -> list[Outcome]:
        compiled.extend(left)
        return [Outcome(job=each, resources=replace(FOUND, registers=1)) for each in left]

    monkeypatch.setattr(aot_record, "compile_all", compile_none)
    outcomes = compile_the_rest(jobs, keys_of(jobs), record, 1, lambda done, total: None)
    assert [each.job for each in outcomes] == jobs
    return compiled, outcomes


class TestKeys:
    def test_keys_differ_where_tritons_cache_tells_compiles_apart(self) -> None:
        jobs = [job(target) for target in ARCHITECTURES]
        jobs += [job(aligned=False), job(block=256), job(warps=2), job(stages=3), job(divisible=())]
        jobs += [job(signature=configuration().signature | {"x_ptr": "*bf16"}), job(case="under another name")]
        found, hashes = keys_of(jobs), [aot_compile.compiled(each).hash for each in jobs]
        assert len(set(found)) == len(jobs) - 2, "nothing divisible is nothing aligned, and a name is but a name"
        assert [[a == b for a in found] for b in found] == [[a == b for a in hashes] for b in hashes]

    @pytest.mark.parametrize("target", ARCHITECTURES)
    def test_key_does_not_tell_where_triton_is_installed(self, target: str) -> None:
        key = compile_key(job(target))
        assert not any(parent in key for parent in {str(Path(triton.__file__).parent), sys.prefix})

    def test_environment_that_the_compiler_heeds_changes_the_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = keys_of([job()])
        monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")
        assert keys_of([job()]) != before

    def test_kernel_that_cannot_be_compiled_has_none_and_is_compiled(self) -> None:
        broken = job(constants={"BLOCKS": 128})
        assert keys_of([broken]) == [""]
        (found,) = compile_the_rest([broken], [""], {}, 1, lambda done, total: None)
        assert "missing ['BLOCK']" in found.error
        unknown_name = replace(
            configuration(), kernel=broken_kernel, signature={"x_ptr": "*fp32"}, constants={"BLOCK": 16}, divisible=()
        )
        jobs = [Job(configuration=unknown_name, target="sm90", aligned=False)]
        assert recorded([compile_job(jobs[0])], keys_of(jobs)) == {}


class TestTakenOver:
    JOBS = tuple(job(target, block=128 << place) for target in ("sm80", "gfx942") for place in range(20))

    def test_nothing_recorded_compiles_everything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compiled, outcomes = compiled_and_taken(list(self.JOBS), {}, monkeypatch)
        assert compiled == list(self.JOBS)
        assert not any(each.recorded for each in outcomes)

    def test_a_part_of_every_group_is_compiled_all_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        record = dict.fromkeys(keys_of(self.JOBS), FOUND)
        compiled, outcomes = compiled_and_taken(list(self.JOBS), record, monkeypatch)
        for target in ("sm80", "gfx942"):
            assert sum(each.target == target for each in compiled) == -(-20 // CHECKED)
        assert [each.resources for each in outcomes if each.recorded] == [FOUND] * (len(self.JOBS) - len(compiled))
        few, _ = compiled_and_taken([job()], dict.fromkeys(keys_of([job()]), FOUND), monkeypatch)
        assert few == [job()]

    def test_what_has_changed_is_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        record = dict.fromkeys(keys_of(self.JOBS), FOUND)
        changed = [replace(each, configuration=replace(each.configuration, warps=2)) for each in self.JOBS[:5]]
        compiled, _ = compiled_and_taken([*changed, *self.JOBS[5:]], record, monkeypatch)
        assert compiled[:5] == changed
        assert len(compiled) <= 5 + 4

    def test_another_result_under_the_same_key_is_named(self) -> None:
        outcomes = [outcome(), outcome("sm80")]
        keys = keys_of([each.job for each in outcomes])
        assert list(contradictions(outcomes, keys, {})) == []
        assert list(contradictions(outcomes, keys, recorded(outcomes, keys))) == []
        other = {keys[0]: replace(FOUND, registers=40)}
        (line,) = contradictions(outcomes, keys, other)
        assert line.startswith("shift/shift_kernel [N128] sm90/aligned: compiles to Resources(registers=64")
        assert "recorded as Resources(registers=40" in line


class TestFile:
    def test_written_record_is_read_back(self, tmp_path: Path) -> None:
        outcomes = [outcome(), outcome("sm80", stack=8, spills=2), replace(outcome(block=256), resources=None)]
        record = recorded(outcomes, keys_of([each.job for each in outcomes]))
        assert len(record) == 2
        write_record(record, tmp_path / "record.json")
        assert read_record(tmp_path / "record.json") == record
        assert read_record(tmp_path / "none.json") == {}
