"""Analysis of attention maps held in memory, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from kvcompress.analysis.metrics import influence
from kvcompress.analysis.metrics import maps_statistics as stats
from kvcompress.analysis.metrics.attention_layers import layer_similarity
from kvcompress.analysis.metrics.attention_maps import Maps, StepMap, read_maps, whole_maps
from kvcompress.analysis.metrics.inputs import visible_keys
from kvcompress.analysis.metrics.json_values import to_json, write_json

SCHEMA: Final = "kvcompress.attention_maps_report/1"


class MapsAnalysis:
    """What maps ``[batch, heads, queries, keys]`` of several layers and steps say.

    Keys seen by a query are found as in :func:`kvcompress.analysis.metrics.inputs.visible_keys`; queries are taken as
    the last of the keys. All results are as JSON has them: NaN and infinities are None.

    Args:
        maps: as of :func:`kvcompress.analysis.metrics.attention_maps.read_maps`.
    """

    def __init__(self, maps: Maps) -> None:
        self.layers = read_maps(maps)

    def statistics(self) -> dict[str, Any]:
        """How many maps there are, and each layer's statistics over all of them."""
        return _json(
            {
                "total_layers": len(self.layers),
                "total_attention_maps": sum(len(captures) for captures in self.layers.values()),
                "total_bytes": sum(capture.num_bytes for captures in self.layers.values() for capture in captures),
                "steps": self._steps(),
                "layers": {
                    name: {"maps": len(captures), "shapes": stats.shapes(captures), **stats.statistics(captures)}
                    for name, captures in self.layers.items()
                },
            }
        )

    def patterns(self) -> dict[str, Any]:
        """How dense, focused, local and alike the layers are, and how that went over the steps."""
        layers = self.layers.items()
        return _json(
            {
                "total_layers": len(self.layers),
                "total_steps": len(self._steps()),
                "attention_density": {
                    name: stats.spread(stats.of_queries(captures, "density")) for name, captures in layers
                },
                "attention_entropy": {
                    name: stats.spread(stats.of_queries(captures, "entropy")) for name, captures in layers
                },
                "attention_focus": {name: stats.focus(captures) for name, captures in layers},
                "shares": {name: stats.shares(captures) for name, captures in layers},
                "layer_similarity": self._similarity(),
                "evolution": {name: stats.evolution(captures) for name, captures in layers},
            }
        )

    def token_influence(self, prompt_length: int) -> dict[str, Any]:
        """Which tokens the generated ones look at; means over layers, steps, batch and heads.

        Args:
            prompt_length: tokens of the prompt, in [1, tokens).

        Raises:
            ValueError: a length out of that range, or maps that are not over one sequence.
        """
        whole = {name: whole_maps(captures, name) for name, captures in self.layers.items()}
        sizes = sorted({capture.attention.shape[-1] for captures in whole.values() for capture in captures})
        if len(sizes) > 1:
            raise ValueError(f"all maps must be over the same tokens; got maps of {sizes} tokens. Analyse them apart.")
        influence.check_prompt_length(prompt_length, sizes[0])
        means = {name: stats.mean_map(captures) for name, captures in whole.items()}
        overall = torch.stack(list(means.values())).mean(0)
        return _json(
            {
                "prompt_length": prompt_length,
                "tokens": sizes[0],
                "prompt_tokens": _tokens(overall, range(prompt_length), prompt_length),
                "generated_tokens": _tokens(overall, range(prompt_length, sizes[0]), prompt_length),
                "cross_mass": influence.cross_mass(overall, prompt_length)._asdict(),
                "cross_mass_by_layer": {
                    name: influence.cross_mass(mean, prompt_length)._asdict() for name, mean in means.items()
                },
                "cross_mass_by_step": _cross_by_step(whole, prompt_length),
                "boundary_share": influence.boundary_share(overall, prompt_length).mean(),
            }
        )

    def layer_summary(self, name: str) -> dict[str, Any]:
        """One layer: statistics over all its maps, by head, and over the steps.

        Raises:
            ValueError: there is no such layer.
        """
        if name not in self.layers:
            raise ValueError(f"name must be a layer's, one of {', '.join(self.layers)}; got {name!r}")
        captures = self.layers[name]
        return _json(
            {
                "layer": name,
                "total_captures": len(captures),
                "steps": [capture.step for capture in captures],
                "shapes": stats.shapes(captures),
                "statistics": stats.statistics(captures),
                "heads": stats.by_head(captures),
                "shares": stats.shares(captures),
                "evolution": stats.evolution(captures),
            }
        )

    def export(self, path: str | Path, prompt_length: int | None = None) -> Path:
        """Writes all of the above as one JSON file, whole or not at all.

        Args:
            path: the file; its folder is made.
            prompt_length: adds the influence of tokens; None: left out.
        """
        report = {
            "schema": SCHEMA,
            "statistics": self.statistics(),
            "patterns": self.patterns(),
            "layers": {name: self.layer_summary(name) for name in self.layers},
            "token_influence": None if prompt_length is None else self.token_influence(prompt_length),
        }
        write_json(Path(path), report)
        return Path(path)

    def _steps(self) -> list[int]:
        return sorted({capture.step for captures in self.layers.values() for capture in captures})

    def _similarity(self) -> dict[str, Any] | None:
        """Cosine between the layers' maps, of the last step whose maps have one shape; mean over batch and heads."""
        last = [captures[-1].attention.double().mean((0, 1)) for captures in self.layers.values()]
        if len({part.shape for part in last}) > 1:
            return None
        return {"layers": list(self.layers), "matrix": layer_similarity(torch.stack(last))}


def _json(content: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = to_json(content, "report")
    return whole


def _tokens(mean: torch.Tensor, positions: Iterable[int], prompt_length: int) -> list[dict[str, float]]:
    """What each token gives and gets, of a map ``[tokens, tokens]``."""
    received = influence.influence_received(mean, visible_keys(mean))
    from_generated = mean[prompt_length:].mean(0)
    paid, to_prompt = influence.influence_paid(mean), mean[:, :prompt_length].sum(1)
    return [
        {
            "position": place,
            "influence_on_generated": float(from_generated[place]),
            "received": float(received[place]),
            "paid_to_others": float(paid[place]),
            "paid_to_prompt": float(to_prompt[place]),
        }
        for place in positions
    ]


def _cross_by_step(whole: Mapping[str, Sequence[StepMap]], prompt_length: int) -> list[dict[str, Any]]:
    """Cross mass at each step, mean over the layers that have a map of it."""
    by_step: dict[int, list[torch.Tensor]] = {}
    for captures in whole.values():
        for capture in captures:
            by_step.setdefault(capture.step, []).append(capture.attention.double().mean((0, 1)))
    return [
        {"step": step, **influence.cross_mass(torch.stack(means).mean(0), prompt_length)._asdict()}
        for step, means in sorted(by_step.items())
    ]
