"""An edited cache predicts what one pass under the edit's masks, or with the edited states, would."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache

from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.analysis.fidelity.teacher_forcing import force
from kvcompress.analysis.pruning.edited_cache import Edited, EditedCache, PromptStates
from tests.tolerances import assert_close

CONTEXT = 24


def unchanged(states: PromptStates) -> Edited:
    return Edited(keys=states.keys, values=states.values)


def nothing_left(states: PromptStates) -> Edited:
    return Edited(keys=states.keys, values=states.values, keep=torch.zeros_like(states.positions, dtype=torch.bool))


def uneven(states: PromptStates) -> Edited:
    """Keep another set of tokens in every layer and head."""
    generator = torch.Generator().manual_seed(states.layer)
    share = torch.tensor([0.3, 0.8])[:, None]
    keep = torch.rand(states.positions.shape[1:], generator=generator) < share
    return Edited(keys=states.keys, values=states.values, keep=keep.expand(states.positions.shape))


def masked_logits(model: Any, ids: torch.Tensor, keep: dict[int, torch.Tensor]) -> torch.Tensor:
    """Logits ``[tokens, vocabulary]`` of one pass without a cache, each layer and head under a mask of its own."""
    tokens, group = len(ids), model.config.num_attention_heads // model.config.num_key_value_heads
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    handles = []
    for index, layer in enumerate(model.model.layers):
        held = torch.ones(model.config.num_key_value_heads, tokens, dtype=torch.bool)
        held[:, :CONTEXT] = keep[index]
        seen = (key <= query) & ((query < CONTEXT) | held[:, None])  # the prompt itself is attended whole
        mask = torch.where(seen, 0.0, -torch.inf).double().repeat_interleave(group, dim=0)[None]

        def put(module: Any, args: Any, kwargs: dict[str, Any], mask: torch.Tensor = mask) -> Any:
            return args, {**kwargs, "attention_mask": mask}

        handles.append(layer.self_attn.register_forward_pre_hook(put, with_kwargs=True))
    try:
        with torch.inference_mode():
            return model(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("chunk", [1, 5, 64])
@pytest.mark.parametrize("edit", [unchanged, nothing_left, uneven])
def test_dropped_tokens_are_not_attended(
    edit: Callable[[PromptStates], Edited], chunk: int, model: Any, windows: torch.Tensor
) -> None:
    keep = {}

    def noted(states: PromptStates) -> Edited:
        edited = edit(states)
        everything = torch.ones_like(states.positions, dtype=torch.bool)
        keep[states.layer] = (everything if edited.keep is None else edited.keep)[0]
        return edited

    for window in windows:
        forced = force(model, lambda: EditedCache(model, noted), window[None], context=CONTEXT, chunk=chunk)
        pruned = masked_logits(model, window, keep).log_softmax(-1)[CONTEXT:-1]
        following = window[CONTEXT + 1 :, None]
        assert_close(forced.compressed_loss[0], -pruned.gather(-1, following)[:, 0])
        full = masked_logits(model, window, {i: torch.ones(2, CONTEXT) > 0 for i in range(3)}).log_softmax(-1)
        divergence = torch.nn.functional.kl_div(pruned, full[CONTEXT:-1], reduction="none", log_target=True).sum(-1)
        torch.testing.assert_close(forced.divergence[0], divergence, atol=1e-10, rtol=1e-8)
    if edit is not unchanged:
        assert float(forced.divergence.mean()) > 0.01  # the case tells caches apart at all


def test_changed_states_are_attended_as_transformers_would(model: Any, windows: torch.Tensor) -> None:
    def halved(states: PromptStates) -> Edited:
        return Edited(keys=states.keys * 0.5, values=states.values * (states.layer == 1))

    reference = DynamicCache(config=model.config)
    Conversation(model, reference).feed(windows[:, :CONTEXT].tolist())
    for index, layer in enumerate(reference.layers):
        layer.keys, layer.values = layer.keys * 0.5, layer.values * (index == 1)
    talk, other = Conversation(model, EditedCache(model, halved)), Conversation(model, reference)
    talk.feed(windows[:, :CONTEXT].tolist())
    rows = windows[:, CONTEXT:].tolist()
    assert_close(talk.feed(rows, all_logits=True), other.feed(rows, all_logits=True))


def test_what_goes_is_gone(model: Any, windows: torch.Tensor) -> None:
    sizes = []
    for edit in (unchanged, uneven, nothing_left):
        cache = EditedCache(model, edit)
        Conversation(model, cache).feed(windows[:1, :CONTEXT].tolist())
        sizes.append(cache.num_bytes)
        held = cache.kept_positions(1)
        if edit is unchanged:
            assert held[0, 0].tolist() == list(range(CONTEXT))
        if edit is nothing_left:
            assert held.numel() == 0
    assert sizes[0] > sizes[1] > sizes[2]


def test_padded_rows_are_what_they_are_alone(model: Any, windows: torch.Tensor) -> None:
    def oldest_gone(states: PromptStates) -> Edited:
        real = states.positions >= 0
        rank = real.long().cumsum(-1)  # from each row's own first token
        return Edited(keys=states.keys, values=states.values, keep=rank > 5)

    prompts = [windows[0, :CONTEXT].tolist(), windows[1, : CONTEXT - 7].tolist()]
    together = Conversation(model, EditedCache(model, oldest_gone))
    together.feed(prompts)
    alone = [Conversation(model, EditedCache(model, oldest_gone)) for _ in prompts]
    for talk, prompt in zip(alone, prompts, strict=True):
        talk.feed([prompt])
    for token in (3, 4):
        got = together.feed([[token], [token]])
        assert_close(got, torch.cat([talk.feed([[token]]) for talk in alone]))


def test_a_reset_cache_is_edited_again_and_a_second_block_is_not(model: Any, windows: torch.Tensor) -> None:
    seen = []

    def noted(states: PromptStates) -> Edited:
        seen.append((states.layer, states.keys.shape[2]))
        return unchanged(states)

    cache = EditedCache(model, noted)
    talk = Conversation(model, cache)
    talk.feed(windows[:1, :9].tolist())
    talk.feed(windows[:1, 9:14].tolist())
    assert seen == [(0, 9), (1, 9), (2, 9)]
    cache.reset()
    Conversation(model, cache).feed(windows[:1, :7].tolist())
    assert seen[3:] == [(0, 7), (1, 7), (2, 7)]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda states: Edited(keys=states.keys[..., :2], values=states.values), "edit must return keys of shape"),
        (lambda states: Edited(keys=states.keys, values=states.values.float()), "edit must return values of shape"),
        (
            lambda states: Edited(keys=states.keys, values=states.values, keep=states.positions),
            "edit must return keep of shape .* dtype torch.bool",
        ),
    ],
)
def test_edits_of_another_form_are_refused(edit: Any, message: str, model: Any, windows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        Conversation(model, EditedCache(model, edit)).feed(windows[:1, :CONTEXT].tolist())
