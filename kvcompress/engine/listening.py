"""Listeners to the attention of attached models, whichever cache they run with. Without listeners nothing is built."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from kvcompress.engine.attention import AttentionCall
    from kvcompress.engine.cache import CompressedCache

listeners: tuple[AttentionListener, ...] = ()  # replaced as a whole: a running forward iterates over what it took
_lock = threading.Lock()


class AttentionListener(Protocol):
    """Hears every attention of every attached model, in every thread: look at the module to know whose it is."""

    def on_attention(self, call: AttentionCall) -> None:
        """A layer that is not compressed has attended: ``call.key`` and ``call.value`` are all that it attended to."""

    def on_compressed(self, cache: CompressedCache, module: torch.nn.Module) -> None:
        """A compressed layer is about to attend; the cache's observers hear what comes of it."""


def add_listener(listener: AttentionListener) -> None:
    """Lets a listener hear."""
    global listeners
    with _lock:
        listeners = (*listeners, listener)


def remove_listener(listener: AttentionListener) -> None:
    """Takes a listener away; one that is not there is no error."""
    global listeners
    with _lock:
        listeners = tuple(other for other in listeners if other is not listener)
