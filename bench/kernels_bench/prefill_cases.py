"""Cases of the prefill: scores of a window, selection, compaction, and the three of them in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kvcompress.bench.eager import EagerScores, eager_scores, gather_kept
from kvcompress.bench.kernels_bench.optional_libraries import flashinfer_top_k
from kvcompress.bench.kernels_bench.prepared_case import (
    GAMMA,
    POOL_SIZE,
    SCORE_TOLERANCE,
    Layer,
    PreparedCase,
    eager_tolerance,
    largest,
)
from kvcompress.bench.measure import Case, Contender, relative_error
from kvcompress.kernels.compact.reference import Packed, RowPlan
from kvcompress.kernels.dispatch import operation
from kvcompress.kernels.window_scores.reference import WindowScores

_FLOAT, _INDEX = 4, 8  # bytes of a float32 and of an int64


def window_scores(layer: Layer) -> Iterator[PreparedCase]:
    """Scores with the log-sum-exp computed, then with it given: the keys are read twice, then once."""
    for name, given in (("window_scores", None), ("window_scores_lse_given", layer.log_sum_exp)):
        reads = 1 if given is not None else 2
        moved = reads * _bytes(layer.key) + _FLOAT * layer.shape.rows * layer.shape.scored
        contenders = []
        for backend in layer.backends:
            run = partial(our_scores, layer, backend, given)
            contenders.append(
                Contender(
                    provider=backend,
                    run=run,
                    error=partial(score_error, run, layer.exact),
                    tolerance=SCORE_TOLERANCE,
                    bytes_moved=moved,
                    counts_memory=True,
                )
            )
        eager = partial(eager_scores, layer.query, layer.key, GAMMA)
        contenders.append(
            Contender(
                provider="authors_eager",
                run=eager,
                error=partial(score_error, eager, layer.exact),
                tolerance=eager_tolerance(layer.dtype),
                bytes_moved=moved,
                counts_memory=True,
            )
        )
        yield PreparedCase(case=layer.case(name), contenders=contenders)


def select_top_k(layer: Layer) -> Iterator[PreparedCase]:
    """The budget's best scores of each row, exact and with a stated order of ties."""
    shape = layer.shape
    scores, k = layer.exact_score.float(), shape.budget
    best = scores.double().topk(k, dim=-1).values
    moved = shape.rows * (_FLOAT * shape.scored + _INDEX * k)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        backend: partial(operation("select_top_k", backend), scores, k) for backend in layer.backends
    }
    runs["torch_topk"] = lambda: torch.topk(scores, k, dim=-1).indices
    fast, skipped = flashinfer_top_k(scores.flatten(0, 1), k)
    if fast is not None:
        runs["flashinfer"] = lambda: fast().view(shape.batch, shape.kv_heads, k)
    contenders = [
        Contender(
            provider=provider,
            run=run,
            # Some libraries give the best in no order.
            error=lambda run=run: relative_error(  # type: ignore[misc]
                scores.gather(-1, run().long()).sort(dim=-1, descending=True).values, best
            ),
            tolerance=0.0,
            calls=4,
            bytes_moved=moved,
            counts_memory=True,
        )
        for provider, run in runs.items()
    ]
    case = Case(name="select_top_k", shape=shape.label, dtype="float32", ratio_to=layer.backends[0])
    yield PreparedCase(case=case, contenders=contenders, skipped=skipped, launch_bound=frozenset())


def compact(layer: Layer) -> Iterator[PreparedCase]:
    """Packing what stays into slots, against a gather of keys and values alone."""
    shape = layer.shape
    scores = layer.exact_score.float()
    chosen = torch.topk(scores, shape.budget, dim=-1).indices
    window = torch.arange(shape.scored, shape.tokens, device=layer.device).expand(shape.batch, shape.kv_heads, -1)
    wide = torch.cat([chosen, window], dim=-1)[..., None].expand(-1, -1, -1, shape.head_dim)
    expected = (layer.key.gather(2, wide), layer.value.gather(2, wide))
    plan, positions = _plan(layer), _positions(layer)
    contenders = []
    for backend in layer.backends:
        pack = partial(_compacted, backend, layer, positions, scores, plan, chosen)
        contenders.append(
            Contender(
                provider=backend,
                run=pack,
                error=lambda pack=pack: _copy_error(pack().slots[:2], expected),  # type: ignore[misc]
                tolerance=0.0,
                calls=4,
                bytes_moved=_compaction_bytes(layer),
                counts_memory=True,
            )
        )

    def gather() -> tuple[torch.Tensor, torch.Tensor]:
        return layer.key.gather(2, wide), layer.value.gather(2, wide)

    contenders.append(
        Contender(
            provider="torch_gather",
            run=gather,
            error=lambda: _copy_error(gather(), expected),
            tolerance=0.0,
            calls=4,
            bytes_moved=_compaction_bytes(layer),
            counts_memory=True,
        )
    )
    yield PreparedCase(case=layer.case("compact"), contenders=contenders, launch_bound=frozenset())


def score_select_compact(layer: Layer) -> Iterator[PreparedCase]:
    """A layer's compression: scores, selection and compaction in a row, against the authors' way."""
    shape = layer.shape
    plan, positions = _plan(layer), _positions(layer)
    for name, given in (("compression", None), ("compression_lse_given", layer.log_sum_exp)):
        reads = 1 if given is not None else 2
        score_bytes = 2 * _FLOAT * shape.rows * shape.scored  # written, then read by the selection
        moved = reads * _bytes(layer.key) + score_bytes + _compaction_bytes(layer)
        contenders = []
        for backend in layer.backends:
            run = partial(_compressed, layer, backend, given, plan, positions)
            contenders.append(
                Contender(
                    provider=backend,
                    run=run,
                    error=lambda run=run: _compression_error(layer, *run()),  # type: ignore[misc]
                    tolerance=SCORE_TOLERANCE,
                    bytes_moved=moved,
                    counts_memory=True,
                )
            )

        contenders.append(
            Contender(
                provider="authors_eager",
                run=partial(_authors_compression, layer),
                error=lambda: _authors_error(layer),
                tolerance=eager_tolerance(layer.dtype),
                bytes_moved=moved,
                counts_memory=True,
            )
        )
        yield PreparedCase(case=layer.case(name), contenders=contenders)


def kept_error(kept: torch.Tensor, exact: torch.Tensor) -> float:
    """How far the worst kept token's exact score lies below the worst that belongs there, relative to that one.

    Args:
        kept: int64 ``[batch, kv_heads, budget]``, places of the kept tokens.
        exact: float64 ``[batch, kv_heads, scored]``.

    Returns:
        0 for a right choice, however ties were broken; infinity where a token is kept twice or does not exist.
    """
    ordered = kept.sort(dim=-1).values
    if bool((ordered.diff(dim=-1) == 0).any()) or bool(((kept < 0) | (kept >= exact.shape[-1])).any()):
        return float("inf")
    bound = exact.topk(kept.shape[-1], dim=-1).values[..., -1]
    worst = exact.gather(-1, kept).amin(-1)
    return float(((bound - worst) / bound).clamp(min=0).max())


def our_scores(layer: Layer, backend: str, log_sum_exp: torch.Tensor | None) -> WindowScores:
    """The scores of a layer's keys, by one of our backends."""
    found: WindowScores = operation("window_scores", backend)(
        layer.query,
        layer.key,
        spec=layer.spec,
        scored=layer.shape.scored,
        gamma=GAMMA,
        pool_size=POOL_SIZE,
        log_sum_exp=log_sum_exp,
    )
    return found


def score_error(run: Callable[[], WindowScores | EagerScores], exact: WindowScores) -> float:
    """Largest of the relative errors of scores, entropy and variance; NaN if any is."""
    found = run()
    if isinstance(found, EagerScores):
        got = (found.scores, found.entropy, found.variance)
    else:
        got = (_score_of(found), found.entropy, found.total_variance)
    wanted = (_score_of(exact), exact.entropy, exact.total_variance)
    return largest(*(relative_error(one, other) for one, other in zip(got, wanted, strict=True)))


def _score_of(found: WindowScores) -> torch.Tensor:
    if found.score is None:
        raise RuntimeError("window_scores emits the score where nothing else is asked for")
    return found.score


def _compressed(
    layer: Layer, backend: str, log_sum_exp: torch.Tensor | None, plan: RowPlan, positions: torch.Tensor
) -> tuple[torch.Tensor, Packed]:
    scores = _score_of(our_scores(layer, backend, log_sum_exp))
    chosen: torch.Tensor = operation("select_top_k", backend)(scores, layer.shape.budget)
    return chosen, _compacted(backend, layer, positions, scores, plan, chosen)


def _compacted(
    backend: str,
    layer: Layer,
    positions: torch.Tensor,
    scores: torch.Tensor,
    plan: RowPlan,
    chosen: torch.Tensor,
) -> Packed:
    packed: Packed = operation("compact", backend)(
        layer.key, layer.value, positions, scores, plan, chosen.flatten(0, 1)
    )
    return packed


def _authors_compression(layer: Layer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scores = eager_scores(layer.query, layer.key, GAMMA).scores
    return gather_kept(layer.key, layer.value, scores, layer.shape.budget, layer.shape.window)


def _authors_error(layer: Layer) -> float:
    return kept_error(_authors_compression(layer)[2], layer.exact_score)


def _compression_error(layer: Layer, chosen: torch.Tensor, packed: Packed) -> float:
    """Wrong choices, and wrong copies of what was chosen."""
    shape = layer.shape
    window = torch.arange(shape.scored, shape.tokens, device=layer.device).expand(shape.batch, shape.kv_heads, -1)
    wide = torch.cat([chosen, window], dim=-1)[..., None].expand(-1, -1, -1, shape.head_dim)
    copies = _copy_error(packed.slots[:2], (layer.key.gather(2, wide), layer.value.gather(2, wide)))
    return largest(kept_error(chosen, layer.exact_score), copies)


def _copy_error(copies: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> float:
    pairs = zip(copies, expected, strict=True)
    return largest(*(relative_error(got.view(wanted.shape), wanted) for got, wanted in pairs))


def _plan(layer: Layer) -> RowPlan:
    shape = layer.shape
    return RowPlan(
        lengths=[shape.slots] * shape.rows,
        source=[row * shape.tokens for row in range(shape.rows)],
        head=[shape.budget] * shape.rows,
        tail_start=[shape.scored] * shape.rows,
        tail=[shape.window] * shape.rows,
    )


def _positions(layer: Layer) -> torch.Tensor:
    shape = layer.shape
    return torch.arange(shape.tokens, device=layer.device).expand(shape.batch, shape.kv_heads, -1)


def _compaction_bytes(layer: Layer) -> int:
    """Keys, values, position and score of each slot, read and written."""
    per_slot = 2 * layer.shape.head_dim * layer.key.itemsize + _INDEX + _FLOAT
    return 2 * layer.shape.rows * layer.shape.slots * per_slot


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize
