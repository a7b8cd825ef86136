"""What the ahead-of-time check compiles of compact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kvcompress.kernels.compact import kernel, launch
from kvcompress.kernels.configuration import Configuration

# Sizes of keys and of values; the last ones differ (multi-head latent attention, and a small odd pair).
_SIZES: Final = (
    (64, 64),
    (80, 80),
    (96, 96),
    (112, 112),
    (128, 128),
    (192, 192),
    (256, 256),
    (512, 512),
    (192, 128),
    (24, 40),
)
_STRIDES: Final = tuple(f"stride_{array}{axis}" for array in "kvps" for axis in "bht")
_NUMBERS: Final = ("rows_padded", "most", "heads", "tokens", "scored", *_STRIDES, "stride_chosen")


def configurations(architecture: str) -> Iterator[Configuration]:
    """Numbers of two and four bytes of every size, with and without chosen; nothing depends on the architecture.

    Args:
        architecture: one of ``tiles.ARCHITECTURES``.
    """
    del architecture
    for bits in (16, 32):
        for head_dim, value_dim in _SIZES:
            yield _configuration(bits, head_dim, value_dim, chosen=True)
        yield _configuration(bits, 128, 128, chosen=False)


def _configuration(bits: int, head_dim: int, value_dim: int, *, chosen: bool) -> Configuration:
    pointers = {
        "key_ptr": f"*i{bits}",
        "value_ptr": f"*i{bits}",
        "position_ptr": "*i64",
        "score_ptr": "*fp32",
        "plan_ptr": "*i64",
        "chosen_ptr": "*i64",
        "new_key_ptr": f"*i{bits}",
        "new_value_ptr": f"*i{bits}",
        "new_position_ptr": "*i64",
        "new_score_ptr": "*fp32",
    }
    absent: dict[str, None] = {} if chosen else {"chosen_ptr": None}
    signature = {name: kind for name, kind in pointers.items() if name not in absent}
    aligned = (*signature, *(f"stride_{array}{axis}" for array in "kv" for axis in "bht"))
    return Configuration(
        operation="compact",
        kernel=kernel._compact_kernel,
        case=f"{bits}bit-D{head_dim}-V{value_dim}" + ("" if chosen else "-unchosen"),
        signature={**signature, **dict.fromkeys(_NUMBERS, "i32")},
        constants={**absent, **launch.compact_constants(head_dim, value_dim)},
        divisible=aligned,
        warps=launch.WARPS,
    )
