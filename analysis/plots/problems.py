"""What can stand in the way of a picture, and checks of the places asked for."""

from __future__ import annotations

from kvcompress.analysis.summary.reader import Sample


class NothingToDrawError(ValueError):
    """The sample does not hold what a view shows. The message says what is missing and how to get it."""


def need(sample: Sample, *names: str, view: str) -> None:
    """Checks that a sample holds what a view shows.

    Raises:
        NothingToDrawError: a tensor is missing.
    """
    missing = [name for name in names if not sample.has(name)]
    if missing:
        raise NothingToDrawError(f"{view} needs {', '.join(missing)}, which sample {sample.index} does not hold")


def need_compression(sample: Sample, view: str) -> None:
    """Checks that a sample was compressed.

    Raises:
        NothingToDrawError: it was not.
    """
    if not sample.compressed:
        raise NothingToDrawError(
            f"{view} shows what compression did, and sample {sample.index} was not compressed; capture with a policy"
        )


def layer_place(sample: Sample, layer: int) -> int:
    """The place of a model's layer on a sample's axis of layers.

    Args:
        sample: what was captured.
        layer: number of the layer in the model.

    Raises:
        ValueError: the layer was not captured.
    """
    layers = list(sample.summary.layer_indices)
    if layer not in layers:
        raise ValueError(f"layer must be {_one_of(layers)}; got {layer}")
    return layers.index(layer)


def checked_step(sample: Sample, step: int) -> int:
    """A step's number (of an event, from 0), checked.

    Raises:
        ValueError: there is no such event.
    """
    return _checked("step", step, sample.events)


def checked_head(sample: Sample, head: int | None) -> int | None:
    """A query head's number, or None for the mean over heads, checked.

    Raises:
        ValueError: there is no such head.
    """
    return None if head is None else _checked("head", head, sample.summary.model.query_heads)


def _checked(name: str, value: int, count: int) -> int:
    if not 0 <= value < count:
        raise ValueError(f"{name} must be {_one_of(list(range(count)))}; got {value}")
    return value


def _one_of(numbers: list[int]) -> str:
    if not numbers:
        return "in an empty range"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"in {numbers[0]}..{numbers[-1]}"
    return "one of " + ", ".join(map(str, numbers))
