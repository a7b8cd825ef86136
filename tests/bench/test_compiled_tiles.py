"""Compiling ahead in several processes: what fails there is named, and a process that dies takes nothing with it."""

import os
from pathlib import Path

import pytest
import torch

from kvcompress.bench.candidate_tiles import candidates, rule_of
from kvcompress.bench.compiled_tiles import Candidate, CompilingProcesses, compile_candidate, default_jobs
from kvcompress.bench.tunable_kernels import CASES, tunable
from kvcompress.kernels.tiles import Tile

FINE, REFUSED, FATAL = (Tile(block_n=size, heads=1, warps=4, stages=2) for size in (32, 64, 128))
FOLDER = "KVCOMPRESS_TEST_COMPILED"


def compile_made_up(candidate: Candidate) -> str | None:
    """Leaves a file as Triton does; dies of one tile and refuses another."""
    if candidate.tile == FATAL:
        os._exit(3)
    if candidate.tile == REFUSED:
        return "too large"
    Path(os.environ[FOLDER], f"{candidate.kernel}-{candidate.tile.block_n}-{os.getpid()}").touch()
    return None


def test_reasons_come_back_and_a_dead_process_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    case = next(iter(CASES))
    with CompilingProcesses(2, compile_made_up) as compiling:
        first = compiling.failures([Candidate("a", case, tile) for tile in (FINE, FATAL, REFUSED)])
        second = compiling.failures([Candidate("b", case, tile) for tile in (REFUSED, FINE)])
    assert first == {FATAL: "the compiling process died", REFUSED: "too large"}
    assert second == {REFUSED: "too large"}
    made = [path.name for path in tmp_path.iterdir()]
    assert {name.rpartition("-")[0] for name in made} == {"a-32", "b-32"}
    assert all(not name.endswith(f"-{os.getpid()}") for name in made)


def test_one_job_compiles_nothing_ahead() -> None:
    with CompilingProcesses(1, compile_made_up) as compiling:
        assert compiling.failures([Candidate("a", next(iter(CASES)), FATAL)]) == {}


def test_default_is_a_process_per_processor_within_reason() -> None:
    assert 1 <= default_jobs() <= 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_is_raised_is_the_reason() -> None:
    reason = compile_candidate(Candidate("decode_attend", "bf16-D128-G4", FINE))
    assert reason is not None
    assert "\n" not in reason
    assert ":" in reason


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["window_scores", "window_lse", "decode_attend"])
def test_compiled_on_a_short_layer_is_compiled_for_the_long_one(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # the processes inherit it
    name = "bf16-D128-G4"
    target = tunable(kernel, CASES[name], torch.device("cuda"))
    tried = list(candidates(kernel, group=target.group, window=target.window, rule=rule_of(target)))[:2]
    with CompilingProcesses(2) as compiling:
        assert compiling.failures([Candidate(kernel, name, tile) for tile in tried]) == {}
    assert list(tmp_path.iterdir())
