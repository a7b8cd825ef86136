"""A cache that is changed once, after the prompt: what stays is really held, what goes is really gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from kvcompress.engine.attention import AttentionCall
from kvcompress.engine.cache import CompressedCache
from kvcompress.engine.compact import compact
from kvcompress.engine.layer import CompressedLayer
from kvcompress.policies.base import Policy
from kvcompress.policies.checks import check_whole
from kvcompress.policies.decode_rules import DECODE_RULES, DecodeRule
from kvcompress.policies.protocols import HeadAllocator, Scorer
from kvcompress.policies.scorers import Unscored, WindowAttention

_SPARE = 16  # free slots of each row from the start, as of any cache that grows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptStates:
    """What a layer holds of the prompt, chronological.

    Attributes:
        layer: index in the model.
        keys: ``[batch, kv_heads, tokens, head_dim]``, rotary embedding applied.
        values: ``[batch, kv_heads, tokens, value_dim]``.
        positions: int64 ``[batch, kv_heads, tokens]``, absolute; -1 where there is no token (padding).
        scores: float32 ``[batch, kv_heads, tokens]``, mean attention of the last ``observers`` tokens, NaN for those
            themselves; None where the cache was made without observers.
    """

    layer: int
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edited:
    """What a layer shall hold instead; shapes and dtypes as in :class:`PromptStates`.

    Attributes:
        keys: the keys.
        values: the values.
        keep: bool ``[batch, kv_heads, tokens]``, which of them stay; None: all.
    """

    keys: torch.Tensor
    values: torch.Tensor
    keep: torch.Tensor | None = None


Edit = Callable[[PromptStates], Edited]


@dataclass(frozen=True, slots=True)
class _EveryToken:
    """Every head keeps all its tokens, also where heads hold different numbers of them."""

    needs_scores = False

    def __call__(self, scores: torch.Tensor | None, budgets: torch.Tensor) -> torch.Tensor:
        """More than any row has, int64 ``[batch, 1]`` on the CPU; the engine takes what there is."""
        return torch.full((len(budgets), 1), torch.iinfo(torch.int64).max)


@dataclass(frozen=True, kw_only=True)
class _KeepAll(Policy):
    """As :class:`~kvcompress.policies.full.Full`, for rows of any lengths.

    Args:
        scored: whether the window's attention is computed too.
    """

    scored: bool = False

    def __post_init__(self) -> None:
        """Checks the window; there is no size."""
        check_whole("observers", self.window_size, at_least=1)

    @property
    def name(self) -> str:
        """``"keep_all"``."""
        return "keep_all"

    @property
    def decode_rule(self) -> DecodeRule:
        """Rows grow."""
        return DECODE_RULES["off"]

    @property
    def scorer(self) -> Scorer:
        """Mean attention of the window, or none."""
        return WindowAttention(gamma=0.0, pool_size=1) if self.scored else Unscored()

    @property
    def head_allocator(self) -> HeadAllocator:
        """All of them."""
        return _EveryToken()


class EditedCache(CompressedCache):
    """Keeps every token of the prompt until all layers have attended it, and is then edited, layer by layer.

    So the prompt is attended whole, as with every compression, and what follows it sees the edited cache. Tokens that
    go leave no slot behind. Layers with a sliding window take part with the tokens that they still hold. A second
    prompt (or a further block) is kept whole and edited no more.

    Args:
        model: a decoder of transformers that the engine can compress.
        edit: called once for each compressed layer, in order.
        observers: how many last tokens of the prompt score the others for the edit; None: nothing is scored.

    Raises:
        UnsupportedModelError: the model has layers that cannot be compressed.
        ValueError: fewer than one observer.
    """

    def __init__(self, model: PreTrainedModel, edit: Edit, *, observers: int | None = None) -> None:
        policy = _KeepAll() if observers is None else _KeepAll(window_size=observers, scored=True)
        super().__init__(model, policy, keep_statistics=observers is not None, compress_sliding=True)
        self._edit = edit
        self._edited = False

    def attend(self, layer: CompressedLayer, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends, and edits every layer after the prompt has gone through the last one."""
        output = super().attend(layer, call)
        if layer is self.compressed_layers[-1] and not self._edited:
            self._edited = True
            with torch.no_grad():
                for each in self.compressed_layers:
                    self._rewrite(each)
        return output

    def reset(self) -> None:
        """Forgets everything: the next prompt is edited again."""
        super().reset()
        self._edited = False

    def _rewrite(self, layer: CompressedLayer) -> None:
        """Lets the edit change a layer and packs what stays."""
        if layer.store is None:
            raise RuntimeError("only a layer that holds tokens can be edited")
        states = _prompt_states(layer)
        edited = self._edit(states)
        _check(states, edited)
        exists = states.positions >= 0
        keep = exists if edited.keep is None else exists & edited.keep
        order = (~keep).to(torch.int8).argsort(dim=-1, stable=True)  # places that stay first, chronological
        held = [int(count) for count in keep.sum(-1).flatten().tolist()]
        layer.store = compact(
            edited.keys,
            edited.values,
            states.positions,
            torch.zeros_like(states.positions, dtype=torch.float32),
            order,
            held=held,
            window=0,
            spare=_SPARE,
            backend=self.backend,
        )
        layer.start_rows(held, 0)
        capacity = None if layer.sliding_window is None else layer.sliding_window + _SPARE
        layer.settle([capacity] * len(held), [0] * len(held))
        layer.evicted = layer.evicted or not bool((keep == exists).all())


def _prompt_states(layer: CompressedLayer) -> PromptStates:
    if layer.store is None:
        raise RuntimeError("only a layer that holds tokens can be edited")
    keys, values, positions = layer.store.chronological()  # free places first
    most = int((positions >= 0).sum(-1).max())
    first = positions.shape[-1] - most
    positions = positions[..., first:]
    return PromptStates(
        layer=layer.layer_idx,
        keys=keys[:, :, first:],
        values=values[:, :, first:],
        positions=positions,
        scores=_scores_at(layer, positions),
    )


def _scores_at(layer: CompressedLayer, positions: torch.Tensor) -> torch.Tensor | None:
    """The scores of the tokens at absolute positions; NaN where there is none."""
    found = None if layer.statistics is None else layer.statistics.token_scores
    if found is None:
        return None
    padded = torch.nn.functional.pad(found, (0, 1), value=torch.nan)
    scored = found.shape[-1]
    return padded.gather(-1, torch.where(positions < 0, scored, positions).clamp(max=scored))


def _check(states: PromptStates, edited: Edited) -> None:
    for name in ("keys", "values"):
        wanted, got = getattr(states, name), getattr(edited, name)
        if got.shape != wanted.shape or got.dtype != wanted.dtype:
            raise ValueError(
                f"edit must return {name} of shape {list(wanted.shape)} and dtype {wanted.dtype} for layer "
                f"{states.layer}; got {list(got.shape)} and {got.dtype}"
            )
    if edited.keep is not None and (edited.keep.shape != states.positions.shape or edited.keep.dtype != torch.bool):
        raise ValueError(
            f"edit must return keep of shape {list(states.positions.shape)} and dtype torch.bool for layer "
            f"{states.layer}; got {list(edited.keep.shape)} and {edited.keep.dtype}"
        )
