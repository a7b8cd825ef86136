"""The rows of a sweep: what a cell is, and what was measured of it. One row is one line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Final

FAMILY: Final = "kvcompress.bench.sweep/"
VERSION: Final = 1
SCHEMA: Final = f"{FAMILY}{VERSION}"

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Everything that decides what comes out of a cell. Two rows with equal cells measure the same thing.

    Attributes:
        policy: as :func:`~kvcompress.bench.sweep.policy_text.parse_policy` reads it.
        cache_size: tokens kept per layer and head on average; None where ``ratio`` is given, and for ``full``.
        ratio: fraction of the prompt that is removed.
        task: a key of :data:`~kvcompress.bench.tasks.registry.TASKS`.
        length: most tokens of context and question.
        mode: ``"query_aware"`` or ``"query_agnostic"``.
        n: samples.
        seed: which samples; also the seed of policies that draw.
        fidelity_n: samples that ``kl`` and ``top1`` are measured on.
        policy_parameters: the policy with all its parameters, defaults included.
        task_parameters: the same for the task.
        model: what the user called the model.
        model_digest: of its configuration and weights.
        dtype: of its weights.
        device: type of device, such as ``"cpu"`` or ``"cuda"``.
    """

    policy: str
    cache_size: int | None
    ratio: float | None
    task: str
    length: int
    mode: str
    n: int
    seed: int
    fidelity_n: int
    policy_parameters: str
    task_parameters: str
    model: str
    model_digest: str
    dtype: str
    device: str

    def __str__(self) -> str:
        """For people, without what is the same in a whole sweep."""
        budget = "" if self.cache_size is None else f" cache_size={self.cache_size}"
        budget += "" if self.ratio is None else f" ratio={self.ratio:g}"
        return f"{self.policy}{budget} / {self.task} {self.length} / {self.mode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was measured of a cell.

    Attributes:
        cell: which one.
        score: mean over the samples, in [0, 1].
        ci95: its interval (Wilson's where each score is 0 or 1, else the bootstrap's); None of a single sample.
        scores: of each sample, in order, so that two rows of the same samples can be compared sample by sample.
        kv_bytes: bytes that the cache held after the last answer, mean over the samples.
        layer_tokens: tokens that each layer held then, mean over samples and heads.
        kl: mean of KL(full || compressed) of the next token along the full cache's answers, in nats.
        kl_ci95: bootstrap over samples; None of a single one.
        top1: share of those predictions with the same likeliest token.
        top1_ci95: the same for it.
        tokens_per_second: decoding one sequence.
        tokens_per_second_ci95: bootstrap over blocks of steps.
        ttft: seconds from the start of one sequence's prompt to its first token, median.
        peak_bytes: most memory allocated at any moment of one sequence's run, on top of the weights.
        seconds: that the cell took.
        batch_size: most samples that ran together.
        versions: of the packages.
        commit: of this project; None where it is no work tree.
        dirty: whether there were changes on top of it.
        cpu: the processor.
        accelerator: the GPU; None where it ran on the CPU.
        time_utc: when it was measured.
    """

    cell: Cell
    score: float
    ci95: Interval | None
    scores: tuple[float, ...]
    kv_bytes: float
    layer_tokens: tuple[float, ...]
    kl: float
    kl_ci95: Interval | None
    top1: float
    top1_ci95: Interval | None
    tokens_per_second: float
    tokens_per_second_ci95: Interval
    ttft: float
    peak_bytes: int
    seconds: float
    batch_size: int
    versions: Mapping[str, str | None]
    commit: str | None
    dirty: bool | None
    cpu: str
    accelerator: str | None
    time_utc: str


_DEFINING: Final = tuple(field.name for field in fields(Cell))
_MEASURED: Final = tuple(field.name for field in fields(Row) if field.name != "cell")


def to_line(row: Row) -> str:
    """A row as one line, its line break included."""
    measured = {name: getattr(row, name) for name in _MEASURED}
    content = {"schema": SCHEMA, **asdict(row.cell), **measured, "versions": dict(row.versions)}
    return json.dumps(content, allow_nan=False) + "\n"


def from_line(line: str) -> Row:
    """Reads a row.

    Args:
        line: what :func:`to_line` wrote.

    Raises:
        ValueError: it is no row of a sweep, of a newer version, or damaged; the message does not name the file.
    """
    try:
        content = json.loads(line)
    except ValueError as error:
        raise ValueError(f"is no JSON ({error}). Give the .jsonl file of a sweep.") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, str) or not schema.startswith(FAMILY):
        raise ValueError(f"is no row of a sweep: its schema must begin with {FAMILY!r}. Give the file of a sweep.")
    if schema != SCHEMA:
        raise ValueError(f"has schema {schema!r}, and this version reads {SCHEMA!r}. Use the version that wrote it.")
    wrong = [name for name, right in _RULES.items() if name not in content or not right(content[name])]
    if wrong:
        raise ValueError(f"has no usable {', '.join(wrong)}; it is damaged. Remove the line: its cell runs again.")
    measured = {name: _frozen(content[name]) for name in _MEASURED}
    row = Row(cell=Cell(**{name: content[name] for name in _DEFINING}), **measured)
    if len(row.scores) != row.cell.n:
        raise ValueError(f"has {len(row.scores)} scores of {row.cell.n} samples; it is damaged. Remove the line.")
    return row


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType(value)
    return tuple(value) if isinstance(value, list) else value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_size(value: object) -> bool:
    """A finite number that is not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and _is_size(value) and value <= 1


def _is_interval(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_size, value)) and value[0] <= value[1]


def _is_commit(value: object) -> bool:
    return value is None or _is_text(value)


_RULES: Final[Mapping[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("policy", "task", "mode", "policy_parameters", "task_parameters", "model"), _is_text),
    **dict.fromkeys(("model_digest", "dtype", "device", "cpu", "time_utc"), _is_text),
    **dict.fromkeys(("length", "n", "seed", "fidelity_n", "peak_bytes", "batch_size"), _is_count),
    **dict.fromkeys(("kv_bytes", "kl", "tokens_per_second", "ttft", "seconds"), _is_size),
    **dict.fromkeys(("score", "top1"), _is_share),
    **dict.fromkeys(("ci95", "kl_ci95", "top1_ci95"), lambda value: value is None or _is_interval(value)),
    **dict.fromkeys(("commit", "accelerator"), _is_commit),
    "tokens_per_second_ci95": _is_interval,
    "cache_size": lambda value: value is None or _is_count(value),
    "ratio": lambda value: value is None or _is_share(value),
    "scores": lambda value: isinstance(value, list) and len(value) > 0 and all(map(_is_share, value)),
    "layer_tokens": lambda value: isinstance(value, list) and all(map(_is_size, value)),
    "versions": lambda value: isinstance(value, dict),
    "dirty": lambda value: value is None or isinstance(value, bool),
}
