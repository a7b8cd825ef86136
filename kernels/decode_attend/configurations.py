"""What the ahead-of-time check compiles of decode_attend: the tiles and compile-time arguments of the launcher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch

from kvcompress.kernels.configuration import Configuration
from kvcompress.kernels.decode_attend import kernel, launch

_NAMES: Final = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_FLOAT32: Final = ("scores_ptr", "new_score_ptr", "logits_ptr", "partial_softmax_ptr")
_TYPES: Final = {
    **dict.fromkeys((*_FLOAT32, "partial_output_ptr", "probability_ptr"), "*fp32"),
    **dict.fromkeys(("positions_ptr", "next_slot_ptr", "row_offsets_ptr", "position_ptr", "row_start_ptr"), "*i64"),
    "least_ptr": "*i64",
    "arrivals_ptr": "*i32",
    **dict.fromkeys(("scaling", "softcap", "decay"), "fp32"),
}  # the tensors of the model's dtype and the int32 numbers are what remains
# The options of a plain step: positions from the host, no features, two launches.
_PLAIN: Final[dict[str, Any]] = dict.fromkeys(
    ("position_ptr", "new_score_ptr", "row_start_ptr", "sinks_ptr", "softcap", "least_ptr")
)
_HEAD_DIMS: Final = (64, 80, 96, 112, 128, 192, 256, 512)


def configurations(architecture: str) -> Iterator[Configuration]:
    """Yields the kernels as the launcher would compile them on an architecture."""
    for dtype in _NAMES:
        for head_dim in _HEAD_DIMS:
            for group in (8, 32):
                yield _attend(architecture, dtype, head_dim, head_dim, group)
                if dtype == torch.bfloat16 or head_dim == 128:  # only the output's last step knows the dtype
                    yield _finish(architecture, dtype, head_dim, group, "running")
        yield _attend(architecture, dtype, 128, 64, 4, features=True)
        for group in (4, 32):
            yield _attend(architecture, dtype, 128, 128, group, one_launch="running")
        for head_dim in (256, 512):
            yield _attend(architecture, dtype, head_dim, head_dim, 16, features=True, one_launch="running")
    for order in ("none", "probability", "running", "stored", "position"):
        yield _finish(architecture, torch.bfloat16, 128, 4, order, features=True, chunks=True)
        yield _attend(architecture, torch.bfloat16, 128, 128, 4, features=True, one_launch=order)
    yield _configuration(kernel._pick_victims_kernel, "any", torch.bfloat16, {"CHUNK": launch.CHUNK}, launch.PICK_WARPS)


def _attend(
    architecture: str,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    group: int,
    *,
    features: bool = False,
    one_launch: str = "",
) -> Configuration:
    """The attending kernel; ``one_launch`` is the order of eviction of the finish in it."""
    cut = launch.decode_tile(architecture, dtype, head_dim, value_dim, group)
    constants = {
        **({} if features else _PLAIN),
        **launch.row_constants(value_dim, group),
        **launch.attend_constants(cut, head_dim, dtype),
        **(launch.finish_constants(value_dim, group, one_launch, cut.warps) if one_launch else launch.WITHOUT_FINISH),
    }
    case = f"{_case(dtype, head_dim, value_dim, group, features)}{f'-one-launch-{one_launch}' if one_launch else ''}"
    stages = launch.attend_stages(cut, architecture, dtype, bool(one_launch))
    return _configuration(kernel._attend_slots_kernel, case, dtype, constants, cut.warps, stages)


def _finish(
    architecture: str,
    dtype: torch.dtype,
    value_dim: int,
    group: int,
    order: str,
    *,
    features: bool = False,
    chunks: bool = False,
) -> Configuration:
    warps = launch.decode_tile(architecture, dtype, value_dim, value_dim, group).warps
    constants = {
        **({} if features else _PLAIN),
        **({} if chunks else {"least_ptr": None}),
        **launch.row_constants(value_dim, group),
        **launch.finish_constants(value_dim, group, order, warps),
        "CHUNK": launch.CHUNK,
    }
    case = f"{_case(dtype, value_dim, value_dim, group, features)}-{order}{'-chunks' if chunks else ''}"
    return _configuration(kernel._finish_kernel, case, dtype, constants, warps)


def _case(dtype: torch.dtype, head_dim: int, value_dim: int, group: int, features: bool) -> str:
    dims = f"D{head_dim}" if head_dim == value_dim else f"D{head_dim}-V{value_dim}"
    return f"{_NAMES[dtype]}-{dims}-G{group}{'-features' if features else ''}"


def _configuration(
    function: Any, case: str, dtype: torch.dtype, constants: dict[str, Any], warps: int, stages: int = 2
) -> Configuration:
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    others = [name for name in function.arg_names if name not in constants]
    signature = {name: _TYPES.get(name, f"*{_NAMES[dtype]}" if name.endswith("_ptr") else "i32") for name in others}
    return Configuration(
        operation="decode_attend",
        kernel=function,
        case=case,
        signature=signature,
        constants=constants,
        divisible=tuple(name for name in others if name.endswith("_ptr") or name.startswith("stride_")),
        warps=warps,
        stages=stages,
    )
