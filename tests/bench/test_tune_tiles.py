"""Tuning: the fastest right tile wins, wrong and impossible ones never do, and the launchers read what was written."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kvcompress.bench import measure as measuring
from kvcompress.bench.candidate_tiles import candidates, rule_of, using
from kvcompress.bench.measure import Contender
from kvcompress.bench.tiles_file import content, read_tiles, write_tiles
from kvcompress.bench.tunable_kernels import CASES, Tunable, tunable
from kvcompress.bench.tune_tiles import (
    MARGIN,
    Outcome,
    Timed,
    choose,
    main,
    tune,
)
from kvcompress.kernels import tiles
from kvcompress.kernels.tiles import Tile, tile, tile_key

WHICH = {"architecture": "sm90", "dtype": torch.bfloat16, "head_dim": 128, "group": 4, "window": 32}
KEY = tile_key("window_scores", **WHICH)
RULE = Tile(block_n=64, heads=4, warps=4, stages=2)
FAST = Tile(block_n=128, heads=2, warps=8, stages=3)
MADE_IN = {"device": "a GPU", "driver": "1.2", "triton": "3.7"}


@pytest.fixture(scope="module", autouse=True)
def _no_collection() -> Iterator[None]:
    """Collecting all of torch's objects takes a third of a second for each tile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.gc, "collect", lambda: 0)
        yield


def tile_in_force() -> Tile:
    return tile("window_scores", **WHICH)  # as a launcher asks


def made_up(error: Callable[[], float] = lambda: 0.0, run: Callable[[], object] = lambda: None) -> Tunable:
    return Tunable(
        key=KEY, label="made up", dtype="bfloat16", group=4, window=32, run=run, error=error, tolerance=1e-3,
        rule=tile_in_force,
    )  # fmt: skip


def by_tile(times: dict[Tile, float], other: float = 9.0) -> Callable[[Contender], float]:
    """A clock under which a run takes as long as the tile in force says."""
    return lambda contender: times.get(tile_in_force(), other)


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=12, unique=True))
def test_chosen_is_the_fastest_or_the_rule_within_the_margin(medians: list[float]) -> None:
    found = [
        Timed(Tile(block_n=16 << index, heads=1, warps=4, stages=2), median) for index, median in enumerate(medians)
    ]
    rule = found[0]
    best = choose(found, rule.tile)
    assert best.median <= rule.median
    assert best.median <= min(medians) * (1 + MARGIN)
    assert best == rule or best.median * (1 + MARGIN) < rule.median


def test_without_a_rule_that_works_the_fastest_wins() -> None:
    found = [Timed(FAST, 2.0), Timed(Tile(block_n=32, heads=1, warps=4, stages=2), 1.0)]
    assert choose(found, RULE) == found[1]
    with pytest.raises(ValueError, match="no candidate gave a right result"):
        choose([], RULE)


def test_equal_times_give_the_smaller_tile() -> None:
    small = Tile(block_n=32, heads=1, warps=4, stages=2)
    assert choose([Timed(FAST, 1.0), Timed(small, 1.0)], RULE).tile == small


@pytest.mark.parametrize("kernel", ["window_lse", "window_scores", "decode_attend"])
@pytest.mark.parametrize("group", [1, 4, 7, 8])
def test_candidates_differ_fit_and_begin_with_the_rule(kernel: str, group: int) -> None:
    rule = tile(kernel, **{**WHICH, "group": group})
    found = list(candidates(kernel, group=group, window=32, rule=rule))
    assert found[0] == rule
    assert len(set(found)) == len(found) > 8
    if kernel == "decode_attend":
        assert {one.block_n for one in found} == {16, 32, 64, 128}
        assert {one.warps for one in found} == {2, 4, 8}
        assert {one.heads for one in found} == {rule.heads}
    else:
        assert all(one.heads * 32 <= 128 for one in found)
        assert {one.heads for one in found} == ({1} if group == 1 else {4, 2, 1})


def test_tuning_finds_the_fastest_tile() -> None:
    tried = candidates("window_scores", group=4, window=32, rule=RULE)
    outcome = tune(made_up(), RULE, tried, sampler=by_tile({RULE: 2.0, FAST: 1.0}), repeats=3)
    assert (outcome.chosen, outcome.median, outcome.rule_median) == (FAST, 1.0, 2.0)
    assert outcome.tried == len(list(candidates("window_scores", group=4, window=32, rule=RULE)))
    assert outcome.dropped == []


def test_wrong_and_impossible_tiles_are_dropped_however_fast() -> None:
    impossible = Tile(block_n=128, heads=4, warps=8, stages=3)

    def error() -> float:
        if tile_in_force() == impossible:
            raise RuntimeError("out of resource: shared memory\nRequired: 300000")
        return 1.0 if tile_in_force() == FAST else 0.0

    tried = candidates("window_scores", group=4, window=32, rule=RULE)
    outcome = tune(made_up(error), RULE, tried, sampler=by_tile({FAST: 0.1, impossible: 0.1, RULE: 2.0}), repeats=1)
    assert outcome.chosen == RULE  # the others take 9
    reasons = {one.tile: one.reason for one in outcome.dropped}
    assert set(reasons) == {FAST, impossible}
    assert "wrong result" in reasons[FAST]
    assert reasons[impossible] == "RuntimeError: out of resource: shared memory"


def test_what_did_not_compile_is_dropped_with_its_reason_and_not_run() -> None:
    def run() -> None:
        assert tile_in_force() != FAST

    tried = list(candidates("window_scores", group=4, window=32, rule=RULE))
    outcome = tune(
        made_up(run=run), RULE, tried, sampler=by_tile({FAST: 0.1, RULE: 2.0}), repeats=1, failures={FAST: "too large"}
    )
    assert [(one.tile, one.reason) for one in outcome.dropped] == [(FAST, "too large")]
    assert outcome.tried == len(tried) - 1
    assert outcome.chosen == RULE


def test_a_kernel_that_is_wrong_with_every_tile_is_no_matter_of_tiles() -> None:
    with pytest.raises(ValueError, match="the kernel is broken here"):
        tune(made_up(lambda: 1.0), RULE, iter([RULE, FAST]), sampler=by_tile({}), repeats=1)


def test_tile_is_in_force_only_for_the_while() -> None:
    before = tile_in_force()
    with using(KEY, FAST):
        assert tile_in_force() == FAST
        assert rule_of(made_up()) == before
        with pytest.raises(KeyError), using(KEY, RULE):
            raise KeyError
        assert tile_in_force() == FAST
    assert tile_in_force() == before
    assert KEY not in tiles._measured() or before != FAST


def outcome_of(key: str, chosen: Tile) -> Outcome:
    return Outcome(key=key, chosen=chosen, median=1.0, rule_median=2.0, tried=3, dropped=[])


def test_what_is_written_is_what_the_launchers_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiles.json"
    write_tiles(path, content([outcome_of(KEY, FAST)], MADE_IN, read_tiles(path)))
    monkeypatch.setattr(tiles, "MEASURED", path)
    tiles._measured.cache_clear()
    try:
        assert tile_in_force() == FAST
        assert tile("window_scores", **{**WHICH, "group": 1}) != FAST
    finally:
        monkeypatch.undo()
        tiles._measured.cache_clear()
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiles.json"]


def test_tiles_of_other_kernels_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    write_tiles(path, content([outcome_of("a", FAST), outcome_of("b", FAST)], MADE_IN, read_tiles(path)))
    write_tiles(path, content([outcome_of("b", RULE)], {**MADE_IN, "device": "another"}, read_tiles(path)))
    found = read_tiles(path)
    assert found["tiles"] == {"a": asdict(FAST), "b": asdict(RULE)}
    assert found["medians"]["a"] == {"ms": 1.0, "rule_ms": 2.0, "device": "a GPU"}
    assert found["medians"]["b"]["device"] == "another"
    assert {"schema", "device", "driver", "triton", "time", "tiles"} <= set(found)


@pytest.mark.parametrize(
    ("arguments", "words"), [((), "needs a CUDA device"), (("--cases", "fp64-D128-G4"), "--cases must be among")]
)
def test_what_it_cannot_do_it_says_in_one_line(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    if torch.cuda.is_available() and not arguments:
        pytest.skip("there is a GPU")
    app = typer.Typer()
    app.command()(main)
    out = tmp_path / "tiles.json"
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not out.exists()


def test_unknown_kernel_is_named() -> None:
    with pytest.raises(ValueError, match="kernel must be one of window_scores, window_lse, decode_attend; got 'none'"):
        tunable("none", CASES["bf16-D128-G4"], torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["window_scores", "window_lse", "decode_attend"])
def test_tiles_that_are_no_rules_give_right_results_on_the_gpu(kernel: str) -> None:
    target = tunable(kernel, CASES["bf16-D128-G4"], torch.device("cuda"))
    rule = rule_of(target)
    tried = list(candidates(kernel, group=target.group, window=target.window, rule=rule))[:3]
    outcome = tune(target, rule, iter(tried), sampler=None, repeats=2)
    assert outcome.tried >= 1
    assert not [one for one in outcome.dropped if "wrong result" in one.reason]
