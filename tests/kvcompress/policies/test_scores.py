"""Scores of each policy against their definitions in float64, from the queries, keys and values that a model gave."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from kvcompress import (
    H2O,
    TOVA,
    AdaKV,
    CompressedCache,
    CriticalKV,
    DefensiveKV,
    ExpectedAttention,
    KeyDiff,
    Knorm,
    ObservedAttention,
    Policy,
    PrefillEvent,
    SnapKV,
    UnsupportedModelError,
)
from kvcompress.policies.criticalkv import ValueAware
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import forward, left_padded, prompt

LONG, SHORT, BLOCK = 300, 170, 150  # more than one chunk of 128 queries, and none a multiple of it
WINDOW = 8
CLOSE = {"rtol": 2e-4, "atol": 2e-6}


@dataclass
class Recorder:
    """Keeps what each layer's prefill was given and scored."""

    events: list[PrefillEvent] = field(default_factory=list)

    def on_prefill(self, event) -> None:
        self.events.append(event)

    def on_evict(self, event) -> None:
        pass

    def on_decode(self, event) -> None:
        pass


def record(model: PreTrainedModel, policy: Policy, setting: str) -> list[PrefillEvent]:
    """Events of the last block: of one prompt, of a left-padded batch, or of a second block after one that all kept."""
    cache, recorder = CompressedCache(model, policy), Recorder()
    cache.add_observer(recorder)
    if setting == "padded":
        ids, mask = left_padded([prompt(LONG), prompt(SHORT, seed=1)])
        forward(model, cache, ids, mask)
        return recorder.events
    ids = torch.cat([prompt(LONG), prompt(LONG, seed=1)])
    if setting == "second block":
        forward(model, cache, ids[:, :-BLOCK])
        recorder.events.clear()
        ids = ids[:, -BLOCK:]
    forward(model, cache, ids)
    assert len(recorder.events) == len(cache.layers)
    return recorder.events


settings = pytest.mark.parametrize("setting", ["one block", "padded", "second block"])
architectures = pytest.mark.parametrize("architecture", ["llama", "mistral-sliding"])


def visible(event: PrefillEvent) -> torch.Tensor:
    """Which query sees which key: bool ``[B, Hkv, 1, Q, N]``; padding queries see nothing."""
    queries = event.query.shape[2]
    last = int(event.positions.max())
    asked = torch.arange(last - queries + 1, last + 1)
    first = event.positions.masked_fill(event.positions < 0, last).amin(-1)[..., None, None, None]
    distance = asked[:, None] - event.positions[:, :, None, None, :]
    seen = (distance >= 0) & (event.positions >= 0)[:, :, None, None, :]
    if event.spec.sliding_window is not None:
        seen = seen & (distance < event.spec.sliding_window)
        first = torch.zeros_like(first)
    return seen & (asked[:, None] >= first)


def attention(event: PrefillEvent) -> torch.Tensor:
    """Probabilities float64 ``[B, Hkv, G, Q, N]``, zero where nothing is seen."""
    batch, heads = event.keys.shape[:2]
    query = event.query.double().reshape(batch, heads, -1, *event.query.shape[2:])
    logits = query @ event.keys.double()[:, :, None].transpose(-1, -2) * event.spec.scaling
    seen = visible(event)
    return logits.masked_fill(~seen, -1e300).softmax(-1) * seen


def assert_scores(event: PrefillEvent, wanted: torch.Tensor) -> None:
    """Equal wherever there is a token."""
    got = event.scores.token_scores
    there = event.positions[..., : got.shape[-1]] >= 0
    torch.testing.assert_close(got.double()[there], wanted[..., : got.shape[-1]][there], **CLOSE)


@settings
@pytest.mark.parametrize("size", [40, 1000])
def test_h2o_adds_up_the_attention_of_all_queries(setting, size) -> None:
    for event in record(shared_model("llama"), H2O(cache_size=size, window_size=WINDOW), setting):
        assert_scores(event, attention(event).sum(3).mean(2))


@settings
def test_observed_attention_is_the_mean_over_those_who_see(setting) -> None:
    for event in record(shared_model("llama"), ObservedAttention(cache_size=1000), setting):
        seen = visible(event).sum(3).clamp(min=1)
        assert_scores(event, attention(event).sum(3).mean(2) / seen[:, :, 0])


def test_observers_of_a_sliding_window_are_those_within_it() -> None:
    for event in record(shared_model("mistral-sliding"), ObservedAttention(cache_size=20), "one block"):
        seen = visible(event).sum(3).clamp(min=1)
        assert_scores(event, attention(event).sum(3).mean(2) / seen[:, :, 0])


@settings
@architectures
def test_tova_takes_the_last_query_of_all_heads(setting, architecture) -> None:
    for event in record(shared_model(architecture), TOVA(cache_size=100, window_size=3), setting):
        last = attention(event)[:, :, :, -1].mean((1, 2))
        assert_scores(event, last[:, None].expand(-1, 2, -1))


@settings
def test_knorm_and_keydiff_look_at_keys_alone(setting) -> None:
    for event in record(shared_model("llama"), Knorm(cache_size=100), setting):
        assert_scores(event, -event.keys.double().norm(dim=-1))
    for event in record(shared_model("llama"), KeyDiff(cache_size=100), setting):
        directions = F.normalize(event.keys.double(), dim=-1) * (event.positions >= 0)[..., None]
        anchor = directions.sum(2, keepdim=True) / (event.positions >= 0).sum(-1)[..., None, None]
        assert_scores(event, -F.cosine_similarity(event.keys.double(), anchor, dim=-1))


def test_keydiff_scores_a_generated_token_by_what_is_held() -> None:
    model = shared_model("llama")
    cache = CompressedCache(model, KeyDiff(cache_size=30, window_size=4))
    forward(model, cache, prompt(LONG))
    store = cache.layers[1].store
    held, positions = store.slots.keys.double().view(2, -1, 8), store.slots.positions.view(2, -1)
    before = (F.normalize(held, dim=-1) * (positions >= 0)[..., None]).sum(1)
    forward(model, cache, prompt(1, seed=5))
    slots = store.slots
    where = slots.positions.view(2, -1) == LONG
    key = slots.keys.double().view(2, -1, 8)[where]
    wanted = -F.cosine_similarity(key, before + F.normalize(key, dim=-1), dim=-1)
    torch.testing.assert_close(slots.scores.view(2, -1)[where].double(), wanted, **CLOSE)


def worst_case(event: PrefillEvent) -> torch.Tensor:
    scored = event.scores.token_scores.shape[-1]
    highest = attention(event)[..., -WINDOW:, :scored].amax((2, 3))
    pooled = F.avg_pool1d(highest, 5, stride=1, padding=2)
    there = event.positions[..., :scored] >= 0
    mean = (pooled * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
    return torch.maximum(pooled, mean)


def norms_of_outputs(model: PreTrainedModel, event: PrefillEvent) -> torch.Tensor:
    """``|W_o v|_1`` with each query head's own part of the matrix, the mean over the group."""
    weight = model.model.layers[event.layer_idx].self_attn.o_proj.weight.double()
    heads, group, dim = event.keys.shape[1], event.query.shape[1] // event.keys.shape[1], event.values.shape[-1]
    norms = []
    for kv_head in range(heads):
        parts = [weight[:, (kv_head * group + g) * dim : (kv_head * group + g + 1) * dim] for g in range(group)]
        norms.append(sum((event.values[:, kv_head].double() @ part.T).abs().sum(-1) for part in parts) / group)
    return torch.stack(norms, 1)


@settings
def test_critical_and_defensive_weigh_by_what_the_value_adds(setting) -> None:
    """The weighted scores are the definition's, dealt out again in two-stage order."""
    model = shared_model("llama")
    sizes = {"cache_size": 1000, "window_size": WINDOW}
    base = SnapKV(**sizes, pool_size=1)
    for event in record(model, CriticalKV(base=base), setting):
        scored = event.scores.token_scores.shape[-1]
        attended = attention(event)[..., -WINDOW:, :scored].mean((2, 3))
        assert_two_stages(event, attended, (attended + 1e-4) * norms_of_outputs(model, event)[..., :scored])
    for event in record(model, DefensiveKV(**sizes), setting):
        attended = worst_case(event)
        scored = event.scores.token_scores.shape[-1]
        assert_two_stages(event, None, attended * norms_of_outputs(model, event)[..., :scored])


def assert_two_stages(event: PrefillEvent, attended: torch.Tensor | None, weighted: torch.Tensor) -> None:
    scores = event.scores.token_scores
    there = event.positions[..., : scores.shape[-1]] >= 0
    for b in range(scores.shape[0]):
        for head in range(scores.shape[1]):
            real = there[b, head]
            got, wanted = scores[b, head, real].double(), weighted[b, head, real]
            torch.testing.assert_close(got.sort().values, wanted.sort().values, **CLOSE)
            order, by_weight = got.argsort(descending=True), wanted.argsort(descending=True)
            for kept in (2, 20, 61):
                chosen = set(order[:kept].tolist())
                assert set(by_weight[: kept // 2 - 1].tolist()) <= chosen
                if attended is not None:
                    by_attention = attended[b, head, real].argsort(descending=True)
                    assert set(by_attention[: kept // 2 - 1].tolist()) <= chosen


def test_the_stages_alone_are_the_base_and_the_weighted_order() -> None:
    """All to the first stage is the base's order, all to the second the weighted one."""
    model = shared_model("llama")
    base = SnapKV(cache_size=50, window_size=WINDOW)
    plain = CompressedCache(model, base)
    first = CompressedCache(model, CriticalKV(base=base, first_stage=1.0))
    second = CompressedCache(model, CriticalKV(base=base, first_stage=0.0), keep_statistics=True)
    for cache in (plain, first, second):
        forward(model, cache, prompt(LONG))
    for layer in range(4):
        assert torch.equal(plain.kept_positions(layer), first.kept_positions(layer))
    event = record(model, CriticalKV(base=base, first_stage=0.0), "one block")[0]
    attended = F.avg_pool1d(attention(event)[..., -WINDOW:, :-WINDOW].mean((2, 3)), 5, stride=1, padding=2)
    weighted = (attended + 1e-4) * norms_of_outputs(model, event)[..., :-WINDOW]
    torch.testing.assert_close(event.scores.token_scores.double(), weighted, **CLOSE)


# ---- ExpectedAttention ----


def rotation(position: int, inverse_frequencies: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The rotary embedding of one position as a matrix for column vectors; halves are paired."""
    half, matrix = len(inverse_frequencies), torch.eye(head_dim, dtype=torch.float64)
    for i, frequency in enumerate(inverse_frequencies.double()):
        cos, sin = torch.cos(position * frequency), torch.sin(position * frequency)
        matrix[i, i], matrix[i, i + half], matrix[i + half, i], matrix[i + half, i + half] = cos, -sin, sin, cos
    return matrix


def expected(event: PrefillEvent, queries: torch.Tensor, row: int, start: int, future: int, model) -> torch.Tensor:
    """The definition for one batch row, from its queries before the rotary embedding ``[Hq, n, D]`` (padding gone)."""
    keys, values = event.keys[row, :, start:].double(), event.values[row, :, start:].double()
    group, (tokens, dim) = queries.shape[0] // keys.shape[0], keys.shape[1:]
    frequencies = model.model.rotary_emb.inv_freq
    turn = torch.stack([rotation(tokens + t, frequencies, dim) for t in range(future)]).mean(0)
    scores = torch.zeros(keys.shape[:2], dtype=torch.float64)
    for head in range(queries.shape[0]):
        counted = queries[head, 4:].double()
        mean = counted.mean(0)
        covariance = (counted - mean).T @ (counted - mean) / len(counted)
        mean, covariance = turn @ mean, turn @ covariance @ turn.T
        k = keys[head // group]
        logits = k @ mean * event.spec.scaling + ((k @ covariance) * k).sum(-1) * event.spec.scaling**2 / 2
        logits[:4] = -1e300
        scores[head // group] += logits.softmax(0) / group
    return scores * values.norm(dim=-1)


@pytest.mark.parametrize("architecture", ["llama", "phi"])
@pytest.mark.parametrize("setting", ["one block", "padded"])
def test_expected_attention_is_that_of_gaussian_queries_to_come(setting, architecture) -> None:
    """Phi's embedding turns only a part of each head."""
    model, queries, hooks = shared_model(architecture), [], []
    for layer in model.model.layers:
        hooks.append(layer.self_attn.q_proj.register_forward_hook(lambda _m, _i, out: queries.append(out.detach())))
    try:
        events = record(model, ExpectedAttention(cache_size=100, future=40), setting)
    finally:
        for hook in hooks:
            hook.remove()
    for event, projected in zip(events, queries, strict=True):
        plain = projected.unflatten(-1, (event.query.shape[1], -1)).transpose(1, 2)
        for row in range(2):
            start = int((event.positions[row, 0] < 0).sum())
            wanted = expected(event, plain[row, :, start:], row, start, 40, model)
            got = event.scores.token_scores[row, :, start:].double()
            torch.testing.assert_close(got, wanted[:, : got.shape[1]], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("gemma3", "rope_parameters|several kinds"), ("gpt-oss", "several kinds"), ("smollm3", "several kinds")],
)
def test_expected_attention_refuses_what_it_cannot_turn_back(architecture, reason) -> None:
    model = shared_model(architecture)
    with pytest.raises(UnsupportedModelError, match=reason):
        forward(model, CompressedCache(model, ExpectedAttention(cache_size=20)), prompt(60))


def test_value_awareness_keeps_entropy_and_variance_for_layer_budgets() -> None:
    """CAKE's preference needs them, whatever wraps its scorer."""
    from kvcompress import Cake

    wrapped = AdaKV(base=CriticalKV(base=Cake(cache_size=40, window_size=WINDOW)))
    assert isinstance(wrapped.scorer, ValueAware)
    for event in record(shared_model("llama"), wrapped, "one block"):
        assert event.scores.entropy is not None
        assert event.scores.variance is not None
