"""The results files: `python -m kvcompress.bench.workloads.algorithm_distillation.measure [learning] [compression]`."""

import logging
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from transformers import LlamaForCausalLM

from kvcompress.bench.results_file import RESULTS, environment, results, write_results
from kvcompress.bench.workloads.algorithm_distillation.darkroom import split_goals
from kvcompress.bench.workloads.algorithm_distillation.evaluation import (
    LATE_EPISODES,
    Evaluation,
    play_side_by_side,
    summarise,
)
from kvcompress.bench.workloads.algorithm_distillation.learning import measure_learning
from kvcompress.bench.workloads.algorithm_distillation.location import load_agent
from kvcompress.bench.workloads.algorithm_distillation.strategies import Strategy
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import MAX_EPISODES

LEARNING_FILE: Final = RESULTS / "ad_training.json"
COMPRESSION_FILE: Final = RESULTS / "ad_compression.json"
RETURNS_FILE: Final = RESULTS / "ad_returns.json"
LEARNING_SCHEMA: Final = "kvcompress.algorithm_distillation.learning/1"
COMPRESSION_SCHEMA: Final = "kvcompress.algorithm_distillation.compression/1"

_NAMES: Final = ("fixed_window", "topk", "pooling", "streaming_llm", "h2o", "kvc")
_RATIOS: Final = (0.7, 0.5, 0.3, 0.2, 0.1)
# What is played more often than the others, to know its loss better: it caches, so it is quick.
_QUICK_NAMES: Final = ("topk", "pooling", "streaming_llm", "h2o")
_QUICK_RATIOS: Final = (0.3, 0.2)
_QUICK_SETS: Final = 4
_LOGGER = logging.getLogger(__name__)


def measure_compression(
    model: LlamaForCausalLM,
    strategies: Sequence[Strategy],
    episodes: int,
    sets: int,
    *,
    seed: int = 0,
    rereads: bool = True,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Return the content of a results file: every strategy on the held-out goals, beside whole histories.

    Reading everything again gives the same actions as a full cache, so it plays the first set of rooms alone, for its
    times.

    Args:
        model: in evaluation mode, on the CPU; torch on one thread.
        strategies: who plays besides the uncompressed ones.
        episodes: of each game.
        sets: how often all held-out goals are played.
        seed: of the first set; the others count on.
        rereads: whether somebody reads everything again, which is slow.
        advance: called after each step of all.
    """
    made_in, (_, goals) = environment(), split_goals()
    full, reread = Strategy(name="full"), Strategy(name="reread")
    evaluation = Evaluation(episodes=episodes)
    for index in range(sets):
        players = [full, *([reread] if rereads and index == 0 else []), *strategies]
        for game in play_side_by_side(model, players, goals, episodes, seed=seed + index, advance=advance):
            evaluation.games.setdefault(game.strategy, []).append(game)
    note = (
        f"Late return: the mean of the last {LATE_EPISODES} of {episodes} episodes on {len(goals)} held-out goals, "
        f"each played {sets} time{'s' if sets > 1 else ''}. Times: all {len(goals)} rooms together, processor time of "
        "one thread."
    )
    notes = {"clock": "processor time", "episodes": episodes, "sets": sets, "seed": seed, "note": note}
    rows = summarise(evaluation, full, reread if rereads else None)
    return results(rows, made_in=made_in, schema=COMPRESSION_SCHEMA, notes=notes)


def main(
    what: Annotated[list[str] | None, typer.Argument(help="learning, compression, returns; all without any.")] = None,
    sets: Annotated[int, typer.Option(min=1, help="How often `compression` plays the held-out goals.")] = 1,
    seeds: Annotated[int, typer.Option(min=2, help="How often the rooms of the learning curve are played.")] = 5,
    model: Annotated[Path | None, typer.Option(help="Folder of an agent; the shipped one without.")] = None,
    to: Annotated[Path, typer.Option(help="Folder of the results files.")] = RESULTS,
) -> None:
    """Measure learning in context, and what compression saves and costs."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    agent = load_agent() if model is None else load_agent(model)
    chosen = what or ["learning", "compression", "returns"]
    if "learning" in chosen:
        made_in = environment()
        rows = measure_learning(agent, MAX_EPISODES, seeds)
        notes = {"training_seeds": 1, "episodes": MAX_EPISODES}
        write_results(results(rows, made_in=made_in, schema=LEARNING_SCHEMA, notes=notes), to / LEARNING_FILE.name)
        _LOGGER.info("written: %s", to / LEARNING_FILE.name)
    if "compression" in chosen:
        strategies = [Strategy(name=name, ratio=ratio) for name, ratio in product(_NAMES, _RATIOS)]
        content = measure_compression(agent, strategies, MAX_EPISODES, sets)
        write_results(content, to / COMPRESSION_FILE.name)
        _LOGGER.info("written: %s", to / COMPRESSION_FILE.name)
    if "returns" in chosen:
        strategies = [Strategy(name=name, ratio=ratio) for name, ratio in product(_QUICK_NAMES, _QUICK_RATIOS)]
        content = measure_compression(agent, strategies, MAX_EPISODES, _QUICK_SETS, rereads=False)
        write_results(content, to / RETURNS_FILE.name)
        _LOGGER.info("written: %s", to / RETURNS_FILE.name)


if __name__ == "__main__":
    typer.run(main)
