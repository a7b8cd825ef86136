"""Attention maps held in memory: {layer name: maps}, in the forms that hooks collect them in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from kvcompress.analysis.metrics.inputs import checked_attention

Maps = Mapping[str, "Sequence[torch.Tensor | Mapping[str, object]] | Mapping[int, torch.Tensor]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMap:
    """A layer's attention at one step.

    Attributes:
        step: number of the step.
        attention: probabilities ``[batch, heads, queries, keys]``, at least float32.
        num_bytes: bytes that the map took as it was given.
    """

    step: int
    attention: torch.Tensor
    num_bytes: int


def read_maps(maps: Maps) -> dict[str, list[StepMap]]:
    """Checks maps and brings them into one form.

    Args:
        maps: for each layer a list of tensors ``[batch, heads, queries, keys]`` (steps 0, 1, 2, ...), a mapping from
            step to tensor, or a list of records ``{"step": ..., "attention_weights": tensor}``.

    Returns:
        Each layer's maps, steps ascending.

    Raises:
        TypeError: something else than a mapping of such.
        ValueError: no layer, a layer without maps, or a map that is no attention.
    """
    if not isinstance(maps, Mapping):
        raise TypeError(f"maps must be a mapping from layer names to attention tensors; got {type(maps).__name__}")
    if not maps:
        raise ValueError("maps must have at least one layer; got none. Run the model before the analysis.")
    return {str(name): _layer(str(name), captures) for name, captures in maps.items()}


def whole_maps(captures: Sequence[StepMap], name: str) -> list[StepMap]:
    """A layer's maps with all tokens as queries and as keys.

    Maps that are such already are taken as they are, one for each step. The maps of an autoregressive generation (a
    square one, then the rows of the new tokens, each with the keys so far) are joined into one.

    Args:
        captures: the layer's maps.
        name: the layer, for errors.

    Raises:
        ValueError: they are neither.
    """
    if all(capture.attention.shape[-2] == capture.attention.shape[-1] for capture in captures):
        return list(captures)
    rows = 0
    for capture in captures:
        queries, keys = capture.attention.shape[-2:]
        if rows + queries != keys or capture.attention.shape[:2] != captures[0].attention.shape[:2]:
            shapes = [tuple(other.attention.shape) for other in captures[:4]]
            raise ValueError(
                f"the maps of {name!r} must all be square, or continue each other row by row; got shapes {shapes}. "
                "Capture from the prompt on, without compression."
            )
        rows = keys
    joined = torch.cat(
        [torch.nn.functional.pad(capture.attention, (0, rows - capture.attention.shape[-1])) for capture in captures],
        dim=-2,
    )
    return [StepMap(step=captures[-1].step, attention=joined, num_bytes=sum(c.num_bytes for c in captures))]


def _layer(name: str, captures: object) -> list[StepMap]:
    pairs: list[tuple[object, object]]
    if isinstance(captures, Mapping):
        pairs = list(captures.items())
    elif isinstance(captures, Sequence) and not isinstance(captures, str):
        pairs = [_record(name, place, capture) for place, capture in enumerate(captures)]
    else:
        raise TypeError(
            f"maps[{name!r}] must be a list of tensors or a mapping from step to tensor; got {type(captures).__name__}"
        )
    if not pairs:
        raise ValueError(f"maps[{name!r}] must have at least one map; got none. Leave the layer out.")
    found = [_step_map(name, step, attention) for step, attention in pairs]
    return sorted(found, key=lambda capture: capture.step)


def _record(name: str, place: int, capture: object) -> tuple[object, object]:
    if not isinstance(capture, Mapping):
        return place, capture
    if "attention_weights" not in capture:
        raise ValueError(f"maps[{name!r}][{place}] must have 'attention_weights'; it has {sorted(map(str, capture))}")
    return capture.get("step", place), capture["attention_weights"]


def _step_map(name: str, step: object, attention: object) -> StepMap:
    if not isinstance(step, int):
        raise TypeError(f"the steps of maps[{name!r}] must be whole numbers; got {step!r}")
    label = f"maps[{name!r}], step {step},"
    if not isinstance(attention, torch.Tensor) or attention.ndim != 4:
        got = tuple(attention.shape) if isinstance(attention, torch.Tensor) else type(attention).__name__
        raise ValueError(f"{label} must be a tensor [batch, heads, queries, keys]; got {got}")
    num_bytes = attention.numel() * attention.element_size()
    return StepMap(step=step, attention=checked_attention(attention, label), num_bytes=num_bytes)
