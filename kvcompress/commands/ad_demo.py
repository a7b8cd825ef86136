"""The work of ``kvcompress ad demo``."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import typer

from kvcompress.commands.ad_strategies import load_agent, one_thread, table
from kvcompress.commands.counting import counting
from kvcompress.commands.result_files import print_json

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import LlamaForCausalLM

_EPISODES = 20
_RATIO = 0.3
_STRATEGIES = ("topk", "pooling", "streaming_llm", "h2o")
_REREADINGS = 5
_BAR = 30


def run_demo(*, seed: int, as_json: bool) -> None:
    """Plays all held-out goals once with the shipped agent, whole and compressed, and tells what was seen."""
    from kvcompress.bench.workloads.algorithm_distillation.darkroom import EPISODE_STEPS, split_goals
    from kvcompress.bench.workloads.algorithm_distillation.evaluation import Evaluation, play_side_by_side, summarise
    from kvcompress.bench.workloads.algorithm_distillation.strategies import Strategy

    model, (_, goals) = load_agent(None), split_goals()
    full = Strategy(name="full")
    strategies = [full, *(Strategy(name=name, ratio=_RATIO) for name in _STRATEGIES)]
    with one_thread(), counting("steps", _EPISODES * EPISODE_STEPS) as advance:
        games = play_side_by_side(model, strategies, goals, _EPISODES, seed=seed, advance=advance)
        rows = summarise(Evaluation(episodes=_EPISODES, games={game.strategy: [game] for game in games}), full, None)
        ids = games[0].ids
        reread = _rereading_milliseconds(model, ids)
        shares = _shares(model, ids)
    for row in rows:
        row["speedup_over_reread"] = round(reread / row["median"], 2)
    if as_json:
        print_json({"schema": "kvcompress.ad_demo/1", "reread_ms": reread, "attention": shares, "cases": rows})
        return
    _show(rows, shares, reread, len(goals))


def _rereading_milliseconds(model: LlamaForCausalLM, ids: NDArray[Any]) -> float:
    """Processor time of reading the whole history once, the median of a few times."""
    import time

    import torch

    from kvcompress.bench.workloads.algorithm_distillation.rereading_agent import RereadingAgent

    agent, times, tokens = RereadingAgent(model), [], torch.from_numpy(ids)
    with torch.inference_mode():
        for _ in range(_REREADINGS):
            agent.begin(len(ids))
            started = time.thread_time()
            agent.observe(tokens)
            times.append(1e3 * (time.thread_time() - started))
    return median(times)


def _shares(model: LlamaForCausalLM, ids: NDArray[Any]) -> dict[str, float]:
    """Attention of the last choice by what was looked at, the mean over layers."""
    from kvcompress.bench.workloads.algorithm_distillation.attention_by_kind import KINDS, attention_shares

    means = attention_shares(model, ids).mean(axis=0)
    return {kind: round(float(share), 4) for kind, share in zip(KINDS, means, strict=True)}


def _show(rows: list[dict[str, Any]], shares: dict[str, float], reread: float, goals: int) -> None:
    best = rows[0]["best_possible"]
    typer.echo(
        f"Darkroom: 7 x 7 cells, a hidden goal, 20 steps per episode. {goals} goals that were in no training data."
    )
    typer.echo(f"The agent's weights stay as they are; it learns from its history. Best possible: {best:.1f}\n")
    typer.echo("return per episode, whole history")
    for episode, mean in enumerate(rows[0]["return_by_episode"], 1):
        typer.echo(f"  {episode:>2}  {mean:>5.1f}  {'#' * round(_BAR * mean / best)}")
    typer.echo("\nwhat its last choice attends to (mean over layers, heads and rooms)")
    for kind, share in shares.items():
        typer.echo(f"  {kind:<28} {share:>6.1%}")
    typer.echo(
        f"\ncompressed to {_RATIO:.0%} of {_EPISODES} episodes; reading all of it again takes {reread:.0f} ms a step"
    )
    for line in table(rows):
        typer.echo(line)
    typer.echo("Late return: mean of the last five episodes. Times: processor time of one thread, all rooms together.")
