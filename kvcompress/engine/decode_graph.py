"""One decode step of the whole model, captured once and replayed: a step then costs one launch on the host."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache as once
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from kvcompress.engine.capture import CaptureMechanism, Replay
from kvcompress.engine.decode_call import DecodeCall, is_decode_step, rebuilt, why_not_captured
from kvcompress.engine.linear_states import linear_states
from kvcompress.engine.watched_weights import WatchedWeights

if TYPE_CHECKING:
    from kvcompress.engine.cache import CompressedCache

_MOST_WARM_UPS = 2  # the first step may wait for the device while libraries set themselves up

_logger = logging.getLogger("kvcompress")


@once
def tell_once(reason: str) -> None:
    """Says, once in a process, why steps run without a graph."""
    _logger.warning("cuda_graph=True, but decode steps run without a graph: %s", reason)


class _TheCache:
    """Stands for the cache in a captured output: a reference to it would keep its keys until the collector runs."""


@dataclass(slots=True)
class _Prepared:
    """A step over fixed buffers, on its way to being captured.

    Attributes:
        key: of the calls that it serves.
        model: the model that it runs.
        buffers: the step's inputs, at fixed addresses.
        warm_ups: steps that ran as a capture would run them.
        waited: whether the last of them made the host wait for the device.
        weights: the state of the model's weights that it was prepared for, see :class:`WatchedWeights`.
        state: the cache's tensors. Held, so that none of their addresses can belong to anything else.
        replay: the captured step.
    """

    key: tuple[Any, ...]
    model: weakref.ref[PreTrainedModel]
    buffers: dict[str, torch.Tensor]
    warm_ups: int = 0
    waited: bool = False
    weights: int = 0
    state: list[torch.Tensor] = field(default_factory=list)
    replay: Replay | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, call: DecodeCall) -> _Prepared:
        buffers = {
            name: torch.empty_like(value, memory_format=torch.contiguous_format) for name, value in call.inputs.items()
        }
        return cls(call.key, weakref.ref(model), buffers)

    def watch(self, cache: CompressedCache, weights: int) -> None:
        """Notes where everything lies that the step reads and writes."""
        self.weights, self.state = weights, _state(cache)

    def fits(self, model: PreTrainedModel, cache: CompressedCache, call: DecodeCall, weights: int) -> bool:
        """Whether a call has the same inputs, and everything still lies where it lay."""
        if self.key != call.key or self.model() is not model or self.weights != weights:
            return False
        now = _state(cache)
        return len(now) == len(self.state) and all(map(is_, now, self.state))

    def load(self, call: DecodeCall) -> None:
        """Copies a call's inputs into the buffers."""
        for name, buffer in self.buffers.items():
            buffer.copy_(call.inputs[name])


class DecodeGraph:
    """The captured decode step of one cache, or what there is of it so far.

    The first decode step after a prefill runs as it will be captured and warms everything up, the second is captured
    and replayed, the following are replayed. Another set of inputs, another model or moved tensors start anew. What no
    graph can serve runs as it is, and a line in the log says why.

    A replay runs no Python: forward hooks inside the model are not called.

    Args:
        mechanism: captures steps.
    """

    def __init__(self, mechanism: CaptureMechanism) -> None:
        self._mechanism = mechanism
        self._prepared: _Prepared | None = None
        self._refusal: str | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> DecodeGraph:
        return DecodeGraph(self._mechanism)

    def __reduce__(self) -> tuple[Any, ...]:
        return DecodeGraph, (self._mechanism,)

    @property
    def captured(self) -> bool:
        """Whether a graph is held."""
        return self._prepared is not None and self._prepared.replay is not None

    def drop(self) -> None:
        """Frees the graph, its memory and its hold on the cache's tensors. The next decode steps capture anew."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared.replay is not None:
            prepared.replay.release()

    def run(
        self,
        model: PreTrainedModel,
        forward: Callable[..., Any],
        cache: CompressedCache,
        arguments: dict[str, Any],
        weights: WatchedWeights,
    ) -> Any:
        """A call of the model with the cache that this graph belongs to.

        Args:
            model: the model.
            forward: its forward without graphs.
            cache: the cache.
            arguments: all arguments, by name.
            weights: watches the model's weights.

        Returns:
            The model's output; its tensors are the caller's own.
        """
        if not is_decode_step(model, cache, arguments):
            self.drop()
            return forward(**arguments)
        reason = self._refusal or why_not_captured(model, cache, arguments)
        if reason is not None:
            tell_once(reason)
            return forward(**arguments)
        return self._step(model, forward, cache, DecodeCall.read(arguments), weights)

    def _step(
        self,
        model: PreTrainedModel,
        forward: Callable[..., Any],
        cache: CompressedCache,
        call: DecodeCall,
        weights: WatchedWeights,
    ) -> Any:
        prepared = self._prepared
        if prepared is None or not prepared.fits(model, cache, call, weights.version(model)):
            self.drop()
            prepared = self._prepared = _Prepared.of(model, call)
        prepared.load(call)

        def step() -> Any:
            output = forward(**prepared.buffers, **call.constants, **{call.cache_name: cache})
            return rebuilt(output, lambda tensor: tensor, (cache, _TheCache))

        if prepared.replay is None and (prepared.waited or prepared.warm_ups == 0):
            output = self._warm_up(prepared, cache, step)
            prepared.watch(cache, weights.version(model))  # a model's first step may make buffers
        elif prepared.replay is None and not self._capture(prepared, cache, step):
            output = step()
        else:
            output = self._replay(prepared)
        return rebuilt(output, torch.clone, (_TheCache, cache))

    def _warm_up(self, prepared: _Prepared, cache: CompressedCache, step: Callable[[], Any]) -> Any:
        if cache.one_launch:
            _make_scratch(cache)
        output, prepared.waited = self._mechanism.warm_up(step, _device(prepared))
        prepared.warm_ups += 1
        if prepared.waited and prepared.warm_ups == _MOST_WARM_UPS:
            self._refuse("a step of this model, or of this backend, makes the host wait for the device")
        return output

    def _capture(self, prepared: _Prepared, cache: CompressedCache, step: Callable[[], Any]) -> bool:
        try:
            prepared.replay = self._mechanism.capture(step, _device(prepared))
        except RuntimeError as error:
            cache.forget_step()
            self._refuse(f"a step could not be captured ({str(error).partition(chr(10))[0]})")
            return False
        return True

    def _replay(self, prepared: _Prepared) -> Any:
        if prepared.replay is None:
            raise RuntimeError("only a captured step can be replayed")
        prepared.replay.run()
        return prepared.replay.output

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        tell_once(reason)
        self.drop()


def _device(prepared: _Prepared) -> torch.device:
    return prepared.buffers["input_ids"].device


def _make_scratch(cache: CompressedCache) -> None:
    """Makes what a first step would make, on the caller's stream: memory of another stream is reused in its order."""
    for layer in cache.compressed_layers:
        if layer.store is not None:
            _ = layer.store.arrivals


def _state(cache: CompressedCache) -> list[torch.Tensor]:
    """The tensors of a cache that a decode step reads and writes."""
    tensors: list[torch.Tensor] = []
    for layer in cache.compressed_layers:
        if layer.store is not None:
            tensors += layer.store.tensors()
        if isinstance(layer.seen, torch.Tensor):
            tensors.append(layer.seen)
        if layer.row_start is not None:
            tensors.append(layer.row_start)
    for each in cache.layers:
        tensors += linear_states(each)
    return tensors
