"""Captures a step of the model as a CUDA graph: the one place that speaks to the device about it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import cache as once
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from kvcompress.engine.attach import devices_of
from kvcompress.engine.decode_call import rebuilt

Step = Callable[[], Any]

# Held by whoever uses a side stream: what another thread launched there during a capture would become part of it.
_one_at_a_time = threading.RLock()  # a step may itself run a model that is captured
_failed: list[torch.cuda.CUDAGraph] = []  # torch's allocator still points at a graph whose capture failed
_WAITED = "called a synchronizing CUDA operation"  # what torch's sync debug mode says


class Replay(Protocol):
    """A captured step.

    Attributes:
        output: what the step returned; each replay writes into the same tensors.
    """

    output: Any

    def run(self) -> None:
        """Runs the step again."""

    def release(self) -> None:
        """Frees the graph and its memory pool."""


class CaptureMechanism(Protocol):
    """How a step is captured. A cache has one; tests give another."""

    def warm_up(self, step: Step, device: torch.device) -> tuple[Any, bool]:
        """Runs a step as a capture will run it.

        Args:
            step: one decode step over fixed buffers.
            device: where it runs.

        Returns:
            ``(output, waited)``: what the step returned, and whether it made the host wait for the device, which no
            capture allows.
        """

    def capture(self, step: Step, device: torch.device) -> Replay:
        """Records a step without executing it.

        Raises:
            RuntimeError: the step cannot be captured. Nothing has been executed.
        """


class CudaCapture:
    """Captures by ``torch.cuda.CUDAGraph``, each graph with a memory pool of its own.

    All warm-ups and captures on a device share one side stream. cuBLAS keeps a workspace for each stream that it has
    seen, and keeps it for ever: 32 MiB on Hopper. With one stream there is one, made by a warm-up and so outside of any
    graph's pool. Threads take turns on it; their own streams wait for it, and it for them, in the order of launches.

    Source:
        https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def warm_up(self, step: Step, device: torch.device) -> tuple[Any, bool]:
        """See :class:`CaptureMechanism`: on a side stream, so that libraries set up what they need per stream."""
        with _one_at_a_time:
            current, side = torch.cuda.current_stream(device), _side_stream(device)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                output, waited = _listening(step)
            current.wait_stream(side)

        def hand_over(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.is_cuda:
                tensor.record_stream(current)  # else the next warm-up could write over it while it is still read there
            return tensor

        return rebuilt(output, hand_over, (None, None)), waited

    def capture(self, step: Step, device: torch.device) -> Replay:
        """See :class:`CaptureMechanism`."""
        if _failed:
            raise RuntimeError("an earlier capture failed in this process")
        graph = torch.cuda.CUDAGraph()
        # The outer stream context puts the current stream back where a failing capture leaves it changed.
        with _one_at_a_time, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            try:
                # "thread_local": other threads may go on using the device.
                with torch.cuda.graph(graph, stream=_side_stream(device), capture_error_mode="thread_local"):
                    output = step()
            except BaseException:
                _failed.append(graph)
                _side_stream.cache_clear()  # warm-ups go on, and not where a capture broke off
                raise
        return _CudaReplay(graph, output)


class _CudaReplay:
    """A captured CUDA graph, see :class:`Replay`."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Any) -> None:
        self.output = output
        self._graph = graph

    def run(self) -> None:
        self._graph.replay()

    def release(self) -> None:
        self.output = None
        self._graph.reset()


def mechanism_for(model: PreTrainedModel) -> CaptureMechanism:
    """How steps of a model are captured.

    Raises:
        ValueError: the model is not on one GPU.
    """
    places = devices_of(model)
    if len(places) > 1:
        raise ValueError(
            f"cuda_graph=True needs the whole model on one GPU; got one spread over {', '.join(places)}. Load "
            "it with device_map={'': 0}, or leave cuda_graph=False."
        )
    if model.device.type != "cuda":
        raise ValueError(
            f"cuda_graph=True needs the model on a GPU; got one on {str(model.device)!r}. Move it there before making "
            "the cache, model.to('cuda'), or leave cuda_graph=False."
        )
    return CudaCapture()


@once
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all warm-ups and captures on a device. It may be the current one: waiting for itself is nothing."""
    return torch.cuda.Stream(device)


def _listening(step: Step) -> tuple[Any, bool]:
    """Runs a step; also returns whether torch saw it wait for the device."""
    mode, show, thread, waits = torch.cuda.get_sync_debug_mode(), warnings.showwarning, threading.get_ident(), []

    def listen(message: Warning | str, *rest: Any, **more: Any) -> None:
        if "ynchroniz" not in str(message):
            show(message, *rest, **more)
        elif _WAITED in str(message) and threading.get_ident() == thread:
            waits.append(message)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*ynchroniz")  # also of the mode itself, which says it is new
        warnings.showwarning = listen
        try:
            torch.cuda.set_sync_debug_mode("warn")
            output = step()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    return output, bool(waits)
