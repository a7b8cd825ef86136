"""Small random attention, for the tests of metrics."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from hypothesis import strategies as st


def random_attention(*shape: int, seed: int = 0, causal: bool = False, sharpness: float = 2.0) -> torch.Tensor:
    """Random probabilities ``[..., queries, keys]``, float64; causal: queries are the last of the keys."""
    logits = sharpness * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if causal:
        queries, keys = shape[-2:]
        later = torch.arange(keys)[None] > torch.arange(keys - queries, keys)[:, None]
        logits = logits.masked_fill(later, -torch.inf)
    return logits.softmax(-1)


def rows(attention: torch.Tensor) -> Iterator[np.ndarray]:
    """Each query's probabilities, in the order of the flattened result."""
    yield from attention.flatten(0, -2).numpy()


def by_row(attention: torch.Tensor, function: Callable[..., float], *others: torch.Tensor) -> torch.Tensor:
    """What a function of one row of each tensor (numpy arrays) says, in the shape ``[..., queries]``."""
    more = [list(rows(other.expand(attention.shape))) for other in others]
    values = [function(row, *(part[place] for part in more)) for place, row in enumerate(rows(attention))]
    return torch.tensor(values, dtype=torch.float64).view(attention.shape[:-1])


@st.composite
def attentions(draw: st.DrawFn, *, most_keys: int = 24) -> torch.Tensor:
    """Attention ``[heads, queries, keys]`` of any sharpness, from nearly even to nearly on one key."""
    heads, queries, keys = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, most_keys))
    sharpness = draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 50.0, 1000.0]))
    return random_attention(heads, queries, keys, seed=draw(st.integers(0, 10_000)), sharpness=sharpness)
