"""Models that are not transformers': everything that calls scaled_dot_product_attention, or nn.MultiheadAttention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kvcompress.analysis.capture.hook import AttentionHook
from kvcompress.analysis.capture.raw import RawRequest
from kvcompress.analysis.capture.recorder import Recorder
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.summary.reader import read_sample
from tests.analysis.capture.whole_attention import softmax_attention
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import prompt

RAW = RecorderSettings(raw=RawRequest())
WIDTH, HEADS = 16, 4


class PlainModel(nn.Module):
    """Two layers of attention written by hand, as a user's own agent might have them."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projections = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.options = options
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """``[batch, tokens, width]``."""
        self.seen = []
        for projection in self.projections:
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in projection(x).chunk(3, -1))
            self.seen.append((q.detach(), k.detach()))
            x = x + F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.options).transpose(1, 2).flatten(2)
        return x


def masks(tokens: int) -> dict[str, torch.Tensor]:
    """Masks of several forms that all hide something."""
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    holes = causal.clone()
    holes[:, 2] = False
    holes[2, 2] = True
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.0])
    distance = (torch.arange(tokens)[:, None] - torch.arange(tokens)).float()
    alibi = (-slopes[:, None, None] * distance).masked_fill(~causal, float("-inf"))
    return {"causal": causal, "holes": holes[None, None], "float": alibi[None], "least": _least(causal)}


def _least(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)


@torch.no_grad()
def test_a_plain_model_is_heard(tmp_path: Path) -> None:
    model = PlainModel(is_causal=True)
    x = torch.randn(2, 9, WIDTH)
    alone = model(x)
    with Recorder(model, tmp_path, settings=RAW) as recorder:
        assert torch.equal(model(x), alone)
    assert [sample.sample for sample in recorder.samples] == [0, 1]
    visible = torch.ones(9, 9, dtype=torch.bool).tril()
    for row in range(2):
        sample = read_sample(tmp_path, row)
        assert sample.summary.model.class_name == "PlainModel"
        assert sample.kinds.tolist() == [0]
        assert sample.summary.tokens is None
        for layer, (query, key) in enumerate(model.seen):
            expected = softmax_attention(query[row], key[row], visible, scaling=(WIDTH // HEADS) ** -0.5)
            torch.testing.assert_close(sample.raw_attention(0, layer).double(), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", list(masks(4)))
def test_masks_of_every_form_are_read(name: str) -> None:
    model, mask = PlainModel(scale=0.7), masks(9)[name]
    with AttentionHook(model) as hook:
        model(torch.randn(1, 9, WIDTH), mask)
    for layer, (query, key) in enumerate(model.seen):
        logits = query @ key.transpose(-1, -2) * 0.7
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
        heard = hook.get_attention_maps()[f"layer_{layer}"][0]
        torch.testing.assert_close(heard, logits.softmax(-1), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_passes_of_a_bidirectional_model_are_steps_with_the_samplers_numbers(tmp_path: Path) -> None:
    model = PlainModel()
    with Recorder(model, tmp_path, settings=RAW) as recorder:
        recorder.new_sample(prompt_tokens=3)
        for step in (7, 8):
            recorder.set_generation_context(step=step, block=step - 7)
            model(torch.randn(1, 9, WIDTH))
    sample = read_sample(tmp_path)
    assert sample.kinds.tolist() == [2, 2]
    assert sample.tensor("event.step").tolist() == [7, 8]
    assert sample.tensor("event.block").tolist() == [0, 1]
    assert sample.summary.prompt_tokens == 3
    raw = sample.raw_attention(0, 0)
    assert bool((raw > 0).all())  # in both directions
    torch.testing.assert_close(
        sample.tensor("attention.prompt_mass")[0, 0], raw[..., :3].sum(-1).mean(-1), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(sample.token_mass(0)[0], raw.mean((0, 1)), atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multi_head_attention_of_torch_is_heard(context: Any, batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=batch_first).eval()
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 9, WIDTH) if batch_first else torch.randn(9, 2, WIDTH)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 7:] = True
    with context():
        alone = model(x, src_key_padding_mask=padding)
        with AttentionHook(model) as hook:
            together = model(x, src_key_padding_mask=padding)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        first = model.layers[0].self_attn
        expected = first(x, x, x, key_padding_mask=padding, average_attn_weights=False)[1]
    torch.testing.assert_close(hook.get_attention_maps()["layer_0"][0], expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_keys_of_the_modules_own_are_refused() -> None:
    model = nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True).eval()
    x = torch.randn(5, 1, WIDTH)

    def run() -> None:
        with AttentionHook(model):
            model(x, x, x)

    with pytest.raises(ValueError, match="add_zero_attn"):
        run()


@torch.no_grad()
def test_both_sources_hear_the_same_of_a_model_of_transformers() -> None:
    model, ids = shared_model("llama"), prompt(30)
    heard = []
    for source in ("transformers", "sdpa"):
        with AttentionHook(model, source=source) as hook:  # type: ignore[arg-type]
            model(ids, use_cache=False)
        heard.append(hook.get_attention_maps())
    assert heard[0].keys() == heard[1].keys()
    for name, maps in heard[0].items():
        torch.testing.assert_close(maps[0], heard[1][name][0], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_hook_keeps_every_pass_with_its_context_until_it_is_cleared() -> None:
    model = PlainModel(is_causal=True)
    hook = AttentionHook(model, layers=[1])
    hook.register_hooks()
    hook.register_hooks()  # twice is once
    model(torch.randn(1, 4, WIDTH))
    hook.set_generation_context(step=5, block=2)
    model(torch.randn(1, 6, WIDTH))
    hook.remove_hooks()
    model(torch.randn(1, 8, WIDTH))
    assert {name: [tuple(m.shape) for m in maps] for name, maps in hook.get_attention_maps().items()} == {
        "layer_1": [(1, 4, 4, 4), (1, 4, 6, 6)]
    }
    assert hook.get_contexts() == [(0, -1), (5, 2)]
    hook.clear()
    assert hook.get_attention_maps() == {}


@torch.no_grad()
def test_a_hook_refuses_what_is_too_long() -> None:
    model = PlainModel(is_causal=True)

    def run() -> None:
        with AttentionHook(model, max_tokens=8):
            model(torch.randn(1, 9, WIDTH))

    with pytest.raises(ValueError, match="max_tokens=8"):
        run()


@torch.no_grad()
def test_attention_outside_of_the_models_forward_is_refused(tmp_path: Path) -> None:
    model = PlainModel(is_causal=True)
    outer = nn.Sequential(model)

    def run() -> None:
        with Recorder(outer, tmp_path):
            model(torch.randn(1, 4, WIDTH))

    with pytest.raises(ValueError, match="outside of a forward"):
        run()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source must be"):
        Recorder(PlainModel(), tmp_path, source="hooks")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="AttentionInterface"):
        Recorder(PlainModel(), tmp_path, source="transformers")
