"""Parts of the interactive views: colours on a logarithmic scale, and arrays as plotly.js reads them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from kvcompress.analysis.plots.bins import Floats

KEYS: Final = "key position (token)"
QUERIES: Final = "query position (token)"
_DECADES: Final = 5
_BAR: Final = {
    "title": {"text": "probability<br>per key token"},
    "tickvals": list(range(-12, 1)),
    "ticktext": [f"1e{power}" if power < -3 else f"{10.0**power:g}" for power in range(-12, 1)],
}


def colour_axis(limits: dict[str, float]) -> dict[str, Any]:
    """A colour axis of logarithms, whose bar is labelled with the probabilities themselves."""
    return {"colorscale": "Viridis", "colorbar": _BAR, **limits}


def colour_limits(maps: Sequence[Floats]) -> dict[str, float]:
    """Colours from the largest probability down over five decades at most."""
    known = np.concatenate([logarithm[np.isfinite(logarithm)] for logarithm in map(logarithm_of, maps)])
    if not len(known):
        return {"cmin": -_DECADES, "cmax": 0}
    most = float(known.max())
    return {"cmin": max(float(known.min()), most - _DECADES) - 1e-9, "cmax": most}


def logarithm_of(values: Floats, least: float = -np.inf) -> Floats:
    """Decimal logarithm; NaN where there is no attention, or less than the colours show."""
    logarithm = np.log10(values, out=np.full(values.shape, np.nan), where=values > 0)
    return np.where(logarithm >= least, logarithm, np.nan)


def packed(values: Floats) -> dict[str, str]:
    """An array as plotly.js reads it, 4 bytes a number: far quicker than lists, and smaller."""
    data = np.ascontiguousarray(values, dtype="<f4")
    return {
        "dtype": "f4",
        "bdata": b64encode(data.tobytes()).decode("ascii"),
        "shape": ", ".join(map(str, data.shape)),
    }
