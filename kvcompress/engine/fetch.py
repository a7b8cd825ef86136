"""Numbers that go from a device to the host while both go on working."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Fetch:
    """Tensors on their way to the host: ONE copy, started when this is made, and no wait before they are asked for.

    Args:
        parts: tensors of any device. Those that are on the CPU already stay as they are, and not copied again. Those
            of a device come in their common dtype, or in float64 where they differ.
    """

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        away = [part for part in parts if part.device.type != "cpu"]
        self._here = [part if part.device.type == "cpu" else None for part in parts]
        self._shapes = [part.shape for part in away]
        self._copy, self._arrival = _send(away)

    @property
    def under_way(self) -> bool:
        """Whether :meth:`result` may have to wait. Never where no part is on a GPU."""
        return self._arrival is not None

    def result(self) -> list[torch.Tensor]:
        """The parts on the CPU, in their order; waits for the device to have come as far as the copy."""
        if self._arrival is not None:
            self._arrival.synchronize()
            self._arrival = None
        arrived = iter(self._copy.split([shape.numel() for shape in self._shapes]))
        shapes = iter(self._shapes)
        return [next(arrived).view(next(shapes)) if part is None else part for part in self._here]

    def __reduce__(self) -> tuple[type[Fetch], tuple[list[torch.Tensor]]]:
        """What is copied (or pickled) is what has arrived: events belong to one process and one stream."""
        return type(self), (self.result(),)


def _send(away: list[torch.Tensor]) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Starts the copy of all numbers in a row; also returns what tells of its end, None where that has come."""
    if not away:
        return torch.empty(0), None
    device = away[-1].device
    dtypes = {part.dtype for part in away}
    common = away[0].dtype if len(dtypes) == 1 else torch.float64
    flat = torch.cat([part.flatten().to(device, common) for part in away])
    if device.type != "cuda":
        return flat.cpu(), None
    copy = torch.empty(flat.shape, dtype=common, pin_memory=True).copy_(flat, non_blocking=True)
    arrival = torch.cuda.Event()
    arrival.record(torch.cuda.current_stream(device))
    return copy, arrival
