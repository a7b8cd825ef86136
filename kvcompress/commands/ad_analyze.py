"""The work of ``kvcompress ad analyze``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kvcompress.commands.ad_evaluate import measured
from kvcompress.commands.ad_recommendations import recommendations
from kvcompress.commands.ad_strategies import load_agent, one_thread, parse_strategies
from kvcompress.commands.failures import CommandError
from kvcompress.commands.result_files import claim, write_text

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from kvcompress.bench.workloads.algorithm_distillation.adapter import ForeignModel
    from kvcompress.bench.workloads.algorithm_distillation.histories import Histories
    from kvcompress.bench.workloads.algorithm_distillation.rollout import Agent
    from kvcompress.bench.workloads.algorithm_distillation.strategies import Strategy

_PICTURES = ("attention_analysis_comprehensive", "attention_heatmap_step", "layer_head_analysis")
_FILES = ("compression_recommendations.txt", "episode.gif", "learning_curve.png", f"{_PICTURES[0]}.png")
_SETS = 1
_CURVE_SEEDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    model: Path | None
    adapter: str | None
    goal: int | None
    episodes: int
    strategies: str
    ratios: str
    interval: int
    seed: int
    output_dir: Path
    force: bool


def run_analyze(request: Request) -> None:
    """Plays, captures, draws and measures, and says what was written.

    Raises:
        CommandError: something that was given cannot be used, or a file is there already.
        ValueError: likewise.
    """
    strategies = parse_strategies(request.strategies, request.ratios, request.interval)
    if request.model is not None and request.adapter is not None:
        raise CommandError("--model and --adapter exclude each other: leave one out")
    if request.adapter is not None:
        strategies = [strategy for strategy in strategies if strategy.name == "fixed_window"]
        if not strategies:
            raise CommandError("a model behind --adapter has no cache to compress: --strategies must have fixed_window")
    text, gif, *_ = claim(request.output_dir, _FILES, force=request.force)
    with one_thread():
        content = (
            _analyze_foreign(request, strategies, gif)
            if request.adapter is not None
            else _analyze_own(request, strategies, gif)
        )
    write_text(text, recommendations(content, request.output_dir))
    curve = request.output_dir / "learning_curve.png"
    written = [gif, *([curve] if request.adapter is None else []), *_draw(request), text]
    for path in written:
        typer.echo(f"written: {path}")


def _analyze_own(request: Request, strategies: Sequence[Strategy], gif: Path) -> dict[str, Any]:
    """Captures and measures an agent of this package; returns the measurements."""
    from kvcompress.bench.workloads.algorithm_distillation.cached_agent import CachedAgent
    from kvcompress.bench.workloads.algorithm_distillation.recording import history_ids, record

    model = load_agent(request.model)
    played = _play(request, CachedAgent(model), gif)
    record(model, history_ids(played, 0), request.episodes, request.output_dir, force=request.force)
    _draw_learning(model, request)
    return measured(model, strategies, request.episodes, _SETS, request.seed)


def _analyze_foreign(request: Request, strategies: Sequence[Strategy], gif: Path) -> dict[str, Any]:
    """Captures and measures a user's model; returns the measurements."""
    from kvcompress.bench.workloads.algorithm_distillation.adapter import ForeignAgent, load_adapter
    from kvcompress.bench.workloads.algorithm_distillation.recording import history_ids, record_foreign

    foreign = load_adapter(str(request.adapter))
    played = _play(request, ForeignAgent(foreign), gif)
    record_foreign(foreign, history_ids(played, 0), request.episodes, request.output_dir, force=request.force)
    return _measured_foreign(foreign, strategies, request)


def _measured_foreign(foreign: ForeignModel, strategies: Sequence[Strategy], request: Request) -> dict[str, Any]:
    """Windows of several lengths against the whole history, for a model that is read again at every step."""
    from kvcompress.bench.workloads.algorithm_distillation.adapter import ForeignAgent
    from kvcompress.bench.workloads.algorithm_distillation.darkroom import split_goals
    from kvcompress.bench.workloads.algorithm_distillation.evaluation import Evaluation, play_agents, summarise
    from kvcompress.bench.workloads.algorithm_distillation.strategies import Strategy
    from kvcompress.bench.workloads.algorithm_distillation.vocabulary import TOKENS_PER_STEP

    _, goals = split_goals()
    whole = Strategy(name="reread")
    agents: list[tuple[Strategy, Agent]] = [(whole, ForeignAgent(foreign))]
    agents += [(strategy, ForeignAgent(foreign, strategy.budget // TOKENS_PER_STEP)) for strategy in strategies]
    games = play_agents(agents, goals, request.episodes, seed=request.seed)
    evaluation = Evaluation(episodes=request.episodes, games={game.strategy: [game] for game in games})
    return {"cases": summarise(evaluation, whole, whole), "episodes": request.episodes}


def _play(request: Request, agent: Agent, gif: Path) -> Histories:
    """Plays one room, and writes the animation."""
    import numpy as np

    from kvcompress.bench.workloads.algorithm_distillation.animation import save_animation
    from kvcompress.bench.workloads.algorithm_distillation.darkroom import START, distance, split_goals
    from kvcompress.bench.workloads.algorithm_distillation.rollout import play

    _, held_out = split_goals()
    farthest = int(held_out[distance(np.full_like(held_out, START), held_out).argmax()])
    goal = farthest if request.goal is None else request.goal
    played = play(agent, np.array([goal]), request.episodes, seed=request.seed).played()
    save_animation(played, gif)
    return played


def _draw_learning(model: LlamaForCausalLM, request: Request) -> None:
    """Draws return per episode on all held-out goals, with its spread over seeds."""
    from kvcompress.bench.workloads.algorithm_distillation.curves import save_curves
    from kvcompress.bench.workloads.algorithm_distillation.darkroom import best_return, split_goals
    from kvcompress.bench.workloads.algorithm_distillation.learning import played_returns, random_return

    _, goals = split_goals()
    returns = played_returns(model, goals, request.episodes, _CURVE_SEEDS).mean(axis=1)
    references = {"best possible": float(best_return(goals).mean()), "random actions": random_return(goals)}
    name = f"{len(goals)} held-out goals, mean and range of {_CURVE_SEEDS} seeds"
    save_curves({name: returns}, references, request.output_dir / "learning_curve.png")


def _draw(request: Request) -> list[Path]:
    from kvcompress.analysis.plots.jobs import Request as Pictures
    from kvcompress.analysis.visualizer import AttentionVisualizer

    visualizer = AttentionVisualizer(request.output_dir)
    return list(visualizer.draw(Pictures(names=_PICTURES), force=request.force))
