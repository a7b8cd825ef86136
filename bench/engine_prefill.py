"""Cases of the prefill: scoring, the whole compression of a layer, selection, compaction."""

from __future__ import annotations

from functools import partial
from time import perf_counter

import torch

from kvcompress import Cake
from kvcompress.bench.eager import EagerScores, eager_scores, gather_kept
from kvcompress.bench.engine_decode import HEAD_DIM, KV_HEADS, QUERY_HEADS, WINDOW, random_block
from kvcompress.bench.measure import Case, CaseRow, Clock, Contender, measure, relative_error
from kvcompress.bench.one_layer import LayerDriver, small_model
from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.kernels.compact.reference import RowPlan
from kvcompress.kernels.dispatch import operation
from kvcompress.kernels.window_scores.reference import AttentionSpec
from kvcompress.policies.scorers import WindowAttention

_GAMMA = 200.0
_BUDGET = 1024
_HEADS = f"{QUERY_HEADS}/{KV_HEADS} heads, D={HEAD_DIM}"


def window_inputs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> ScoreInputs:
    """What the engine hands to a scorer for a plain causal prompt."""
    tokens = key.shape[2]
    return ScoreInputs(
        layer_idx=0,
        module=torch.nn.Identity(),
        query=query,
        keys=key,
        values=value,
        positions=None,
        last_position=tokens - 1,
        row_start=None,
        valid_queries=None,
        window=WINDOW,
        scored=tokens - WINDOW,
        spec=AttentionSpec(scaling=query.shape[-1] ** -0.5),
        backend="torch",
    )


def scoring(*, quick: bool, clock: Clock = perf_counter) -> list[CaseRow]:
    """Scores of a window of 32 queries: blockwise against the materialised attention matrix."""
    rows = []
    for tokens, repeats in ((512, 3),) if quick else ((8192, 12), (32768, 6)):
        query, key, value = random_block(tokens)
        query = query[:, :, -WINDOW:].contiguous()
        exact = eager_scores(query.double(), key.double(), _GAMMA, exact=True)
        ours = partial(WindowAttention(gamma=_GAMMA), window_inputs(query, key, value))
        authors = partial(eager_scores, query, key, _GAMMA)
        contenders = [
            Contender(
                provider="kvcompress",
                run=ours,
                error=partial(_score_error, ours, exact),
                bytes_moved=4 * key.numel(),
                counts_memory=True,
            ),
            Contender(
                provider="authors_eager",
                run=authors,
                error=partial(_score_error, authors, exact),
                counts_memory=True,
            ),
        ]
        case = Case(name="scoring", shape=f"{tokens} tokens, window {WINDOW}, {_HEADS}")
        rows += measure(case, contenders, repeats=repeats, clock=clock)
    return rows


def _score_error(run: partial[LayerScores] | partial[EagerScores], exact: EagerScores) -> float:
    """Largest of the relative errors of scores, entropy and variance; NaN if any is."""
    scores = run()
    if isinstance(scores, EagerScores):
        found = (scores.scores, scores.entropy, scores.variance)
    elif scores.entropy is None or scores.variance is None:
        return float("nan")
    else:
        found = (scores.token_scores, scores.entropy, scores.variance)
    errors = [relative_error(got, wanted) for got, wanted in zip(found, exact, strict=True)]
    return float(torch.tensor(errors).max())


def compression(*, quick: bool, clock: Clock = perf_counter) -> list[CaseRow]:
    """A layer's whole compression after its attention: score, allocate, select, compact."""
    tokens, budget, repeats = (512, 64, 3) if quick else (8192, _BUDGET, 12)
    query, key, value = random_block(tokens)
    policy = Cake(cache_size=budget + WINDOW, window_size=WINDOW)
    driver = LayerDriver(small_model(QUERY_HEADS, KV_HEADS, HEAD_DIM), policy)
    last = query[:, :, -WINDOW:]
    exact = eager_scores(last.double(), key.double(), _GAMMA).scores

    def authors() -> torch.Tensor:
        scores = eager_scores(last, key, _GAMMA).scores
        return gather_kept(key, value, scores, budget, WINDOW)[2]

    def kept() -> torch.Tensor:
        driver.compress(query, key, value)
        return driver.cache.kept_positions(0)[..., :budget]

    contenders = [
        Contender(
            provider="kvcompress",
            run=partial(driver.compress, query, key, value),
            error=lambda: _kept_error(kept(), exact),
            counts_memory=True,
        ),
        Contender(
            provider="authors_eager",
            run=authors,
            error=lambda: _kept_error(authors(), exact),
            counts_memory=True,
        ),
    ]
    shape = f"{tokens} -> {budget} + {WINDOW} tokens, {_HEADS}"
    return measure(Case(name="compress_layer", shape=shape), contenders, repeats=repeats, clock=clock)


def _kept_error(kept: torch.Tensor, exact: torch.Tensor) -> float:
    """How far the worst kept token's exact score lies below the worst that belongs there, relative to that one."""
    if any(len(set(row)) < len(row) for row in kept.flatten(0, 1).tolist()):
        return float("inf")  # a token kept twice
    bound = exact.topk(kept.shape[-1], dim=-1).values[..., -1]
    worst = exact.gather(-1, kept).amin(-1)
    return float(((bound - worst) / bound).clamp(min=0).max())


def selection(*, quick: bool, clock: Clock = perf_counter) -> list[CaseRow]:
    """The best 1024 of 32768 scores in 8 rows: exact and deterministic against torch.topk."""
    count, k = (2048, 64) if quick else (32768, _BUDGET)
    scores = torch.rand(KV_HEADS, count, generator=torch.Generator().manual_seed(0))
    select = operation("select_top_k", "torch")
    best = scores.double().topk(k, dim=-1).values
    contenders = [
        Contender(
            provider="kvcompress",
            run=lambda: select(scores, k),
            error=lambda: relative_error(scores.gather(-1, select(scores, k)), best),
            bytes_moved=4 * scores.numel(),
            counts_memory=True,
        ),
        Contender(
            provider="torch_topk",
            run=lambda: torch.topk(scores, k, dim=-1),
            error=lambda: relative_error(torch.topk(scores, k, dim=-1).values, best),
            bytes_moved=4 * scores.numel(),
            counts_memory=True,
        ),
    ]
    case = Case(name="select", shape=f"{KV_HEADS} rows of {count}, k={k}")
    return measure(case, contenders, repeats=3 if quick else 40, clock=clock)


def compaction(*, quick: bool, clock: Clock = perf_counter) -> list[CaseRow]:
    """Packing what stays into slots against gathering it with torch."""
    tokens, budget = (512, 64) if quick else (8192, _BUDGET)
    _, key, value = random_block(tokens)
    scores = torch.rand(1, KV_HEADS, tokens, generator=torch.Generator().manual_seed(1))
    best = torch.topk(scores[..., :-WINDOW], budget, dim=-1).indices
    window = torch.arange(tokens - WINDOW, tokens).expand(1, KV_HEADS, WINDOW)
    index = torch.cat([best, window], dim=-1)
    positions = torch.arange(tokens).expand(1, KV_HEADS, tokens)
    rows = [0] * KV_HEADS
    plan = RowPlan(
        lengths=[budget + WINDOW for _ in rows],
        source=[row * tokens for row in range(KV_HEADS)],
        head=[budget for _ in rows],
        tail_start=[tokens - WINDOW for _ in rows],
        tail=[WINDOW for _ in rows],
    )
    pack = partial(operation("compact", "torch"), key, value, positions, scores, plan, best[0])
    wide = index[..., None].expand(-1, -1, -1, HEAD_DIM)
    expected = key.double().gather(2, wide).view(-1, HEAD_DIM)
    moved = 4 * index.numel() * HEAD_DIM * 4

    def gather() -> tuple[torch.Tensor, torch.Tensor]:
        return key.gather(2, wide), value.gather(2, wide)

    contenders = [
        Contender(
            provider="kvcompress",
            run=pack,
            error=lambda: relative_error(pack().slots.keys, expected),
            bytes_moved=moved,
            counts_memory=True,
        ),
        Contender(
            provider="torch_gather",
            run=gather,
            error=lambda: relative_error(gather()[0].view(-1, HEAD_DIM), expected),
            bytes_moved=moved,
            counts_memory=True,
        ),
    ]
    case = Case(name="compact", shape=f"{KV_HEADS} x {budget + WINDOW} of {tokens} tokens, D={HEAD_DIM}")
    return measure(case, contenders, repeats=3 if quick else 40, clock=clock)
