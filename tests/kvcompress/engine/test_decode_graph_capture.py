"""How steps are captured, as far as a CPU can show it: one side stream, and what the host is told about waiting."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from kvcompress.engine import capture as capturing
from kvcompress.engine.capture import CudaCapture

DEVICE = torch.device("cuda", 0)
WAITED = "called a synchronizing CUDA operation (Triggered internally at ...)"


class Stream:
    def __init__(self, log: list[Any], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class Device:
    """What torch says of a GPU, with a log of what is asked of it; the mode warns as torch's own does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[Any] = []
        self.mode: int | str = 0
        self.made: list[Stream] = []
        self.current = Stream(self.log, "current")
        self.captured_on: list[Stream] = []
        self.failure: Exception | None = None
        for name, value in {
            "current_stream": lambda device: self.current,
            "Stream": self.make,
            "stream": lambda stream: nullcontext(),
            "device": lambda device: nullcontext(),
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self.set_mode,
            "CUDAGraph": object,
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def make(self, device: torch.device) -> Stream:
        self.made.append(Stream(self.log, "side"))
        return self.made[-1]

    def set_mode(self, mode: int | str) -> None:
        self.mode = mode
        warnings.warn("Synchronization debug mode is a prototype feature and does not ...", UserWarning, stacklevel=2)

    def graph(self, graph: object, *, stream: Stream, capture_error_mode: str) -> Any:
        self.captured_on.append(stream)
        if self.failure is not None:
            raise self.failure
        return nullcontext()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setattr(capturing, "_failed", [])
    capturing._side_stream.cache_clear()
    yield Device(monkeypatch)
    capturing._side_stream.cache_clear()


def test_warm_ups_and_captures_share_one_stream(device: Device) -> None:
    mechanism = CudaCapture()
    for _ in range(3):
        mechanism.warm_up(lambda: device.log.append("step"), DEVICE)
        mechanism.capture(lambda: None, DEVICE)
    assert len(device.made) == 1
    assert device.captured_on == device.made * 3
    assert device.log == ["side waits for current", "step", "current waits for side"] * 3


def test_a_step_that_runs_another_captured_model_does_not_wait_for_itself(device: Device) -> None:
    mechanism = CudaCapture()
    output, waited = mechanism.warm_up(lambda: mechanism.warm_up(lambda: "inner", DEVICE), DEVICE)
    assert (output, waited) == (("inner", False), False)


def test_another_threads_warm_up_stays_out_of_a_capture(device: Device) -> None:
    mechanism, order, other = CudaCapture(), [], []

    def captured() -> None:
        thread = threading.Thread(target=mechanism.warm_up, args=(lambda: order.append("warm-up"), DEVICE))
        thread.start()
        thread.join(0.2)
        order.append("captured")
        other.append(thread)

    mechanism.capture(captured, DEVICE)
    other[0].join(30)
    assert order == ["captured", "warm-up"]


def test_after_a_failed_capture_warm_ups_take_another_stream(device: Device) -> None:
    mechanism = CudaCapture()
    mechanism.warm_up(lambda: None, DEVICE)
    device.failure = RuntimeError("operation not permitted when stream is capturing")
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"not permitted|an earlier capture failed"):
            mechanism.capture(lambda: None, DEVICE)
    mechanism.warm_up(lambda: None, DEVICE)
    assert len(device.made) == 2


@pytest.mark.parametrize("action", ["error", "always", "ignore"])
def test_a_step_that_waits_is_noticed_whatever_the_user_does_with_warnings(device: Device, action: Any) -> None:
    def waits() -> str:
        warnings.warn(WAITED, UserWarning, stacklevel=2)
        return "done"

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter(action)
        assert CudaCapture().warm_up(waits, DEVICE) == ("done", True)
        assert CudaCapture().warm_up(lambda: "done", DEVICE) == ("done", False)
    assert not shown
    assert device.mode == 0
