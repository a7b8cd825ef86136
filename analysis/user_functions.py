"""Functions that users add by name: metrics and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


class UserFunctions(Generic[Function]):
    """Functions by name.

    Args:
        kind: what they are, as messages call one: ``"metric"``.
        takes: what they take and return, as messages say it.
    """

    def __init__(self, kind: str, takes: str) -> None:
        self._kind, self._takes = kind, takes
        self._functions: dict[str, Function] = {}

    def add(self, name: str, function: Function, *, replace: bool) -> None:
        """Adds a function.

        Raises:
            TypeError: it cannot be called.
            ValueError: the name is taken, and ``replace`` is not set.
        """
        if not callable(function):
            raise TypeError(f"function must {self._takes}; got {type(function).__name__}")
        if name in self._functions and not replace:
            raise ValueError(
                f"name must be new; a {self._kind} {name!r} is registered. Give another name, or replace=True."
            )
        self._functions[name] = function

    def remove(self, name: str) -> None:
        """Takes a function away.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self._functions:
            known = sorted(self._functions)
            raise ValueError(f"name must be that of a registered {self._kind}, one of {known}; got {name!r}")
        del self._functions[name]

    def all(self) -> Mapping[str, Function]:
        """The functions by name; a view that cannot be written."""
        return MappingProxyType(self._functions)
