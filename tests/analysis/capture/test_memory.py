"""Recording needs no memory that grows with the number of steps, but a few bytes per token."""

from __future__ import annotations

import gc
from pathlib import Path
from types import FunctionType, ModuleType

import torch

from kvcompress import CakeCache
from kvcompress.analysis.capture.recorder import Recorder
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import forward, prompt

HEADS = 4 * 2  # kv heads of all layers
BYTES_PER_HEAD = 2 * 2 * (4 + 4 + 4 + 4 + 4 + 4 + 1)  # norms, sparsity, score, event and stage, in tables that double


def held_bytes(root: object) -> int:
    """Bytes of all storages that are reachable from an object, code left aside."""
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in seen and not isinstance(thing, type | ModuleType | FunctionType):
            seen[id(thing)] = thing
            waiting += gc.get_referents(thing)
    tensors = [thing for thing in seen.values() if issubclass(type(thing), torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@torch.no_grad()
def test_memory_does_not_grow_with_the_steps(tmp_path: Path) -> None:
    model = shared_model("llama")
    cache = CakeCache(model, cache_size=24, window_size=4)
    with Recorder(model, tmp_path) as recorder:
        forward(model, cache, prompt(40))
        for step in range(20):
            forward(model, cache, prompt(1, seed=step))
        before, rows = held_bytes(recorder.session._sequences), _on_disk(tmp_path)
        for step in range(200):
            forward(model, cache, prompt(1, seed=step))
        grown = (held_bytes(recorder.session._sequences) - before) / 200
        written = (_on_disk(tmp_path) - rows) / 200
    assert 0 < grown <= HEADS * BYTES_PER_HEAD + 200, grown
    assert written > 10 * grown  # what a step yields is on disk
    assert recorder.samples[0].tensors["event.kind"].shape == (221,)


def _on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.bin"))
