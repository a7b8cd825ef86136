"""Judges `kvc` against the published policies at equal bytes, on tasks, lengths and samples that it was not made with.

`kvc` is the place that won the search, with its window of two tokens; windows of four and eight are judged beside it.
Published policies that observe do so with eight, Cake also with four: questions have three to six. All evict while
decoding, so that they hold the same bytes. H2O and ObservedAttention are left out for their time: they score by every
query of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from kvcompress.bench.search.contenders import OURS, maker
from kvcompress.bench.search.means import Means
from kvcompress.bench.search.trials import MakePolicy, Part, Trial
from kvcompress.bench.tasks.sample import MODES

KEEPS: Final = (0.25, 0.12, 0.06, 0.03)
CELLS: Final = (
    ("needle_20", 2048),
    ("variables_4", 1024),
    ("multi_value", 1024),
    ("copy", 1024),
    ("multi_turn", 1024),
)
_BATCH = 50
_LONG, _OF_LONG = 1024, 50  # prompts beyond so many tokens take long: fewer samples of them

_EVICTS: Final = "accumulate"  # published policies that would grow hold the same bytes with it
CONTENDERS: Final[Mapping[str, MakePolicy]] = MappingProxyType(
    {
        OURS: maker("kvc", window_size=2),
        "kvc, window 4": maker("kvc", window_size=4),
        "kvc, window 8": maker("kvc", window_size=8),
        "cake, window 4": maker("cake", window_size=4),
        "cake, window 8": maker("cake", window_size=8),
        "snapkv": maker("snapkv", window_size=8, decode=_EVICTS),
        "pyramidkv": maker("pyramidkv", window_size=8, decode=_EVICTS),
        "adakv(snapkv)": maker("adakv", base="snapkv", window_size=8, decode=_EVICTS),
        "defensivekv": maker("defensivekv", window_size=8, decode=_EVICTS),
        "layer_defensivekv": maker("layer_defensivekv", window_size=8, decode=_EVICTS),
        "tova": maker("tova"),
        "expected_attention": maker("expected_attention", decode=_EVICTS),
        "keydiff": maker("keydiff"),
        "streaming_llm": maker("streaming_llm"),
        "random": maker("random", window_size=8),
    }
)


def parts_of(samples: int) -> Iterator[Part]:
    """All cells, a batch of samples of each before the next: a run that is stopped has as many of each."""
    for start in range(0, samples, _BATCH):
        for task, length in CELLS:
            if length > _LONG and start >= _OF_LONG:
                continue
            for mode in MODES:
                count = min(_BATCH, samples - start)
                yield Part(task=task, length=length, mode=mode, first=start, count=count, keeps=KEEPS)


def summarise(trials: list[Trial]) -> list[dict[str, Any]]:
    """Rows of the result: first means over all cells of a mode and budget, then each cell."""
    means = Means(trials, OURS)
    return means.mean_rows(CELLS, KEEPS) + means.cell_rows()
