"""Stands before a model's ``forward`` and hands decode steps to the graph of the cache that they bring."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from kvcompress.engine.cache_argument import given_cache
from kvcompress.engine.watched_weights import WatchedWeights

_wanted: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()  # detached models get it back when they are attached


class GraphForward:
    """A model's ``forward``, which replays decode steps of caches made with ``cuda_graph=True``.

    It is an attribute of the model, so it holds the model weakly, and a copy of the model has one of its own. Calls
    with any other cache, and calls that are compiled, go through untouched.

    Args:
        model: the model.
        inner: the ``forward`` that was set on the model itself, if there was one; None: that of its class.
    """

    def __init__(self, model: PreTrainedModel, inner: Callable[..., Any] | None) -> None:
        self.inner = inner
        self._model = weakref.ref(model)
        self._weights = WatchedWeights()
        functools.update_wrapper(self, inner or type(model).forward)
        del self.__dict__["__wrapped__"]  # it would show `self` as an argument; generate reads the arguments' names
        self.__signature__ = inspect.signature(self._forward(model))

    def __reduce__(self) -> tuple[Any, ...]:
        return GraphForward, (self._model(), self.inner)  # copies with the model, and belongs to the copy

    def _forward(self, model: PreTrainedModel) -> Callable[..., Any]:
        forward: Callable[..., Any] = self.inner or type(model).forward.__get__(model)
        return forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model, or replays what it would do."""
        model = self._model()
        if model is None:
            raise ReferenceError("the model of this forward is gone; hold the model, not its forward")
        forward = self._forward(model)
        if torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        arguments = self._by_name(args, kwargs)
        cache = given_cache(arguments)
        graph = getattr(cache, "decode_graph", None)
        if graph is None:
            return forward(*args, **kwargs)
        return graph.run(model, forward, cache, arguments, self._weights)

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if not args:
            return kwargs
        arguments = dict(self.__signature__.bind(*args, **kwargs).arguments)
        for name, parameter in self.__signature__.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                arguments |= arguments.pop(name, {})
        return arguments


def install(model: PreTrainedModel) -> None:
    """Puts a :class:`GraphForward` before a model's forward. Idempotent."""
    _wanted.add(model)
    if not isinstance(model.forward, GraphForward):
        model.forward = GraphForward(model, model.__dict__.get("forward"))


def install_again(model: PreTrainedModel) -> None:
    """Puts it back before a model that had one before it was detached."""
    if model in _wanted:
        install(model)


def remove(model: PreTrainedModel) -> None:
    """Gives a model back the forward that it had."""
    forward = model.__dict__.get("forward")
    if not isinstance(forward, GraphForward):
        return
    if forward.inner is None:
        del model.__dict__["forward"]
    else:
        model.forward = forward.inner
