"""What a history says: attention over the steps, across the prompt's end, and what the tokens are worth to each other.

The measures are those of :mod:`kvcompress.analysis`; here the history is only brought into their form.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from kvcompress.analysis.analyzer import AttentionAnalyzer
from kvcompress.analysis.metrics.attention import positions_for
from kvcompress.analysis.metrics.influence import check_prompt_length, influence_of_prompt, influence_received
from kvcompress.analysis.metrics.json_values import to_json
from kvcompress.analysis.metrics.step_change import changes
from kvcompress.bench.workloads.diffusion_lm.history import History

SCHEMA: Final = "kvcompress.diffusion_analysis/1"
COVERAGE_PERCENT: Final = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Evolution:
    """How the attention of each layer went over the steps.

    Attributes:
        moved: mass that moved from each step to the next, mean over queries, float64 [L, S - 1].
        coverage: keys that hold 90 % of a query's mass, mean over queries, float64 [L, S].
        to_prompt: mass that the generated tokens paid to the prompt, float64 [L, S].
        from_prompt: mass that the prompt's tokens paid to the generated ones, float64 [L, S].
    """

    moved: Tensor
    coverage: Tensor
    to_prompt: Tensor
    from_prompt: Tensor


def restrict(history: History, *, max_layers: int | None, max_tokens: int | None, prompt_length: int | None) -> History:
    """Return a history with fewer layers or tokens, or another boundary.

    Args:
        history: the history.
        max_layers: most layers, evenly spaced, the first and the last among them; None: all.
        max_tokens: most tokens, those around the prompt's end; their rows no longer sum to 1. None: all.
        prompt_length: tokens of the prompt; None: as recorded.

    Raises:
        ValueError: a number out of range.
    """
    tokens = history.canvas.shape[1]
    prompt = history.prompt_length if prompt_length is None else prompt_length
    check_prompt_length(prompt, tokens)
    if max_layers is not None and max_layers < 1:
        raise ValueError(f"max_layers must be at least 1, got {max_layers}")
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2, one on each side of the prompt's end, got {max_tokens}")
    names = list(history.maps)
    if max_layers is not None and max_layers < len(names):
        names = [names[round(place)] for place in torch.linspace(0, len(names) - 1, max_layers).tolist()]
    shown = tokens if max_tokens is None else min(max_tokens, tokens)
    # As many tokens on each side as there are and as fit.
    first = min(max(0, prompt - shown // 2), tokens - shown)
    part = slice(first, first + shown)
    return replace(
        history,
        maps={name: history.maps[name][:, part, part] for name in dict.fromkeys(names)},
        canvas=history.canvas[:, part],
        tokens=history.tokens[part],
        prompt_length=prompt - first,
        first_token=history.first_token + first,
    )


def analyzer_of(history: History) -> AttentionAnalyzer:
    """Return the analyzer of a history's maps."""
    maps = {
        name: [{"step": step, "attention_weights": attention[None, None]} for step, attention in enumerate(layer)]
        for name, layer in history.maps.items()
    }
    return AttentionAnalyzer(maps)


def evolution(history: History) -> Evolution:
    """Return how attention went over the steps."""
    prompt = history.prompt_length
    layers = [layer.double() for layer in history.maps.values()]  # each [S, T, T]
    moved = [
        torch.stack([one.total_variation.mean() for one in changes(list(layer))])
        if len(layer) > 1
        else layer.new_zeros(0)
        for layer in layers
    ]
    return Evolution(
        moved=torch.stack(moved),
        coverage=torch.stack([positions_for(layer, float(COVERAGE_PERCENT)).double().mean(-1) for layer in layers]),
        to_prompt=torch.stack([layer[:, prompt:, :prompt].sum(-1).mean(-1) for layer in layers]),
        from_prompt=torch.stack([layer[:, :prompt, prompt:].sum(-1).mean(-1) for layer in layers]),
    )


def influence(history: History) -> tuple[Tensor, Tensor]:
    """Return how much attention each token gets, means over layers and steps.

    Returns:
        From the generated tokens by each of the prompt, float64 [prompt]; and from all tokens by each, float64 [T].
    """
    mean = torch.stack([layer.double().mean(0) for layer in history.maps.values()]).mean(0)
    return influence_of_prompt(mean, history.prompt_length), influence_received(mean)


def analysis_of(history: History) -> dict[str, Any]:
    """Return what `diffusion_analysis.json` holds: statistics, patterns, influence, evolution, memory of the maps.

    Positions in it count from `first_token`.
    """
    analyzer, over_steps = analyzer_of(history), evolution(history)
    content = {
        "schema": SCHEMA,
        "steps": history.steps,
        "tokens": history.canvas.shape[1],
        "first_token": history.first_token,
        "prompt_length": history.prompt_length,
        "layers": list(history.maps),
        "statistics": analyzer.get_attention_statistics(),
        "patterns": analyzer.analyze_attention_patterns(),
        "token_influence": analyzer.analyze_token_influence(history.prompt_length),
        "evolution": {
            "moved_to_next": over_steps.moved,
            f"keys_holding_{COVERAGE_PERCENT}_percent": over_steps.coverage,
            "generated_to_prompt": over_steps.to_prompt,
            "prompt_to_generated": over_steps.from_prompt,
        },
        "filled_at_step": history.filled_at(),
        "maps_bytes": sum(layer.half().nbytes for layer in history.maps.values()),
    }
    whole: dict[str, Any] = to_json(content, "diffusion_analysis")
    return whole
