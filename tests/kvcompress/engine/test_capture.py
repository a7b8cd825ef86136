"""Listening for steps that wait for the device, and what a failed capture leaves behind."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from kvcompress.engine import capture
from kvcompress.engine.capture import CudaCapture

WAITED = "called a synchronizing CUDA operation (Triggered internally at somewhere.cpp:1.)"


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A pretended device: streams do nothing, the debug mode is noted."""
    modes: list[Any] = []

    @contextmanager
    def nothing(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    class Stream:
        def __init__(self, *args: Any) -> None: ...

        def wait_stream(self, other: Any) -> None: ...

    class Graph:
        def replay(self) -> None: ...

        def reset(self) -> None: ...

    def set_mode(mode: Any) -> None:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)
        modes.append(mode)

    for name, value in {
        "Stream": Stream, "current_stream": Stream, "stream": nothing, "device": nothing, "graph": nothing,
        "CUDAGraph": Graph, "get_sync_debug_mode": lambda: 0, "set_sync_debug_mode": set_mode,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(capture, "_failed", [])
    return modes


@pytest.mark.parametrize(("message", "waited"), [(WAITED, True), (None, False)])
def test_a_step_that_waits_is_noticed(device: list[Any], message: str | None, waited: bool) -> None:
    def step() -> str:
        if message is not None:
            warnings.warn(message, stacklevel=1)
        return "output"

    assert CudaCapture().warm_up(step, torch.device("cpu")) == ("output", waited)
    assert device == ["warn", 0]


def test_other_threads_may_wait_and_other_warnings_are_heard() -> None:
    def step() -> None:
        thread = threading.Thread(target=lambda: warnings.warn(WAITED, stacklevel=1))
        thread.start()
        thread.join()
        warnings.warn("something else", DeprecationWarning, stacklevel=1)

    with pytest.warns(DeprecationWarning, match="something else") as heard:
        _, waited = CudaCapture().warm_up(step, torch.device("cpu"))
    assert not waited
    assert len(heard) == 1


def test_the_debug_mode_is_put_back_after_an_error(device: list[Any]) -> None:
    with pytest.raises(ZeroDivisionError):
        CudaCapture().warm_up(lambda: 1 // 0, torch.device("cpu"))
    assert device == ["warn", 0]


def test_after_a_failed_capture_there_is_no_other_in_the_process() -> None:
    def fails() -> None:
        raise RuntimeError("not permitted")

    replay = CudaCapture().capture(lambda: "output", torch.device("cpu"))
    assert replay.output == "output"
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaCapture().capture(fails, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="an earlier capture failed"):
        CudaCapture().capture(lambda: None, torch.device("cpu"))
    replay.release()
    assert replay.output is None
