"""The cache that plugs into ``model.generate``."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.engine.allocate import Cascade, slack_bytes
from kvcompress.engine.arguments import check_arguments
from kvcompress.engine.attach import attach, is_attached, text_config
from kvcompress.engine.attend import attend_token
from kvcompress.engine.attention import AttentionCall, tag_key
from kvcompress.engine.build import build_layers, largest_head_dim
from kvcompress.engine.capture import mechanism_for
from kvcompress.engine.decode_graph import DecodeGraph, tell_once
from kvcompress.engine.events import Observer, ascending
from kvcompress.engine.graph_forward import install
from kvcompress.engine.guards import stay_out_of_graphs
from kvcompress.engine.layer import CompressedLayer
from kvcompress.engine.layer_statistics import LayerStatistics
from kvcompress.engine.precision import attention_dtype, own_precision
from kvcompress.engine.prefill import prefill
from kvcompress.engine.report import CacheReport, layer_bytes, layer_report
from kvcompress.engine.sharing import leave_reader, reader_of, shares_keys
from kvcompress.errors import CacheStateError, UnsupportedModelError
from kvcompress.kernels.dispatch import operation, resolve_backend
from kvcompress.policies.base import Policy


class _Shared:
    """Holds an object that copies of a cache share: copying a cache must not copy the model's config."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


class CompressedCache(Cache):
    """A KV cache that keeps what a policy chooses, for ``model.generate(past_key_values=cache)``.

    Transformers from 5.24 on calls the argument ``cache``; the older name still works there, with a warning.
    Making one attaches the model (see :func:`kvcompress.attach`). A cache serves one batch of conversations: continue
    them with it, or ``reset()`` it for new ones.

    Args:
        model: a decoder of transformers.
        policy: which tokens are kept, e.g. ``SnapKV(cache_size=1024)``.
        keep_statistics: keep every layer's token scores for :meth:`statistics` (costs memory).
        compress_sliding: whether sliding-window layers are compressed too. None: only where the model has no other.
        cascade_every: allocate budgets after every that many layers. More asks the device less often and holds more
            memory during prefill; the tokens kept are the same (but for ``CakeReference``, as in its authors' code).
            On a GPU layers are compacted one layer later, while that one runs, where the slack, 1/256 of its memory
            (:func:`~kvcompress.engine.allocate.slack_bytes`), has room for it.
        static: fixed shapes and device-side positions while decoding, for ``torch.compile`` and CUDA graphs.
        backend: ``"auto"``, ``"torch"`` or ``"triton"``.
        one_launch: decode by the Triton kernel's one-launch variant instead of two launches per layer. It relies on
            atomics between programs; ``make test-gpu`` holds it to 100,000 steps on a GPU before you rely on it.
        cuda_graph: capture the decode step of the whole model and replay it, in ``generate`` and in plain calls.
            Implies ``static``; the model must be on one GPU. See :class:`~kvcompress.engine.decode_graph.DecodeGraph`.

    Raises:
        UnsupportedModelError: the model has layers that cannot be compressed.
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        policy: Policy,
        *,
        keep_statistics: bool = False,
        compress_sliding: bool | None = None,
        cascade_every: int = 1,
        static: bool = False,
        backend: str = "auto",
        one_launch: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        static = static or cuda_graph
        check_arguments(model, policy, cascade_every, static)
        self.decode_graph = DecodeGraph(mechanism_for(model)) if cuda_graph else None
        layers = build_layers(model, compress_sliding=compress_sliding, static=static)
        self.backend = resolve_backend(
            backend,
            model.device,
            dtype=model.dtype,
            head_dim=largest_head_dim(model, layers),
            window=policy.window_size,
        )
        if one_launch and self.backend == "torch":
            raise ValueError(
                "one_launch=True is a variant of the Triton kernels, and this cache runs torch. Leave it out."
            )
        self.decode_attend = operation("decode_attend", self.backend)  # looked up here, since torch.compile cannot
        attach(model)
        if cuda_graph:
            install(model)
        super().__init__(layers=layers)
        self.policy = policy
        self.eviction = policy.decode_rule.eviction(policy.window_size, policy.sink_tokens)
        self.keep_statistics = keep_statistics
        self.cascade_every = cascade_every
        self.static = static
        self.one_launch = one_launch
        self.compressed_layers = [layer for layer in layers if isinstance(layer, CompressedLayer)]
        self.cascade = self._new_cascade(slack_bytes(policy, model.device))
        self.observers: list[Observer] = []
        self._blank_layers = {i: deepcopy(x) for i, x in enumerate(layers) if not isinstance(x, CompressedLayer)}
        self._config = _Shared(text_config(model))
        self.shares_keys = shares_keys(self._config.target)
        self._pending: CompressedLayer | None = None

    def _new_cascade(self, slack: int) -> Cascade:
        return Cascade(self.policy, len(self.compressed_layers), every=self.cascade_every, slack=slack)

    # ---- transformers' protocol -----------------------------------------------------------------------------------

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes a layer's new keys and values; the attention function that follows stores them.

        Args:
            key_states: ``[batch, kv_heads, new tokens, head_dim]``.
            value_states: ``[batch, kv_heads, new tokens, value_dim]``.
            layer_idx: index of the layer.
            *args: ignored.
            **kwargs: ignored.

        Returns:
            For a compressed layer the new block alone, the key tagged for the engine; else what the layer returns.

        Raises:
            CacheStateError: the model was detached, or some layer was updated and never attended.
        """
        if torch.compiler.is_compiling() and not self.static:
            stay_out_of_graphs()
        self._check_attended()
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        if isinstance(layer, CompressedLayer):
            self._pending = layer
            keys = tag_key(keys, self, layer)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens SEEN, evicted ones included."""
        length: int = super().get_seq_length(layer_idx)
        return length

    def attend(self, layer: CompressedLayer, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Called by the attention function: attends a layer's new tokens and compresses the layer."""
        if not layer.pending:
            return self._read(layer, call)
        if not getattr(call.module, "is_causal", True):
            raise UnsupportedModelError(
                f"compression supports causal attention only, and layer {layer.layer_idx} attends in both "
                "directions. Use a decoder, or run this model without a cache."
            )
        layer.pending, self._pending = False, None
        if layer is self.compressed_layers[0] and self.cascade.unfinished:
            raise CacheStateError(
                f"the last prefill reached {len(self.cascade.scored)} of {len(self.compressed_layers)} layers: it "
                "was interrupted, or the model skips layers. Call cache.reset() or make a new cache; for a model "
                "that skips layers use DynamicCache."
            )
        own = call.in_dtype(attention_dtype(call, layer.store))
        if layer.decodes(call.query.shape[2]):
            with own_precision(call.query.device):
                (output, weights), reader = attend_token(self, layer, own)
        else:
            if self.decode_graph is not None:
                self.decode_graph.drop()
            (output, weights), reader = prefill(self, layer, own)
        if reader is not None and self.shares_keys:
            leave_reader(call.key, reader)
        return output.to(call.query.dtype), weights

    def _read(self, layer: CompressedLayer, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends with the queries of a layer that shares the keys of another."""
        reader = reader_of(call.key)
        if reader is None or getattr(call.module, "layer_idx", None) == layer.layer_idx:
            raise CacheStateError(
                f"layer {layer.layer_idx} was attended twice for one update: this model attends to the same keys in "
                "more ways than one, which compression does not support. Use DynamicCache for this model."
            )
        output, weights = reader(call.in_dtype(attention_dtype(call, layer.store)))
        return output.to(call.query.dtype), weights

    def _check_attended(self) -> None:
        if not is_attached(self._config.target):
            raise CacheStateError(
                "the cache's model is no longer attached (detach or set_attn_implementation was called), so nothing "
                "would be compressed. Call kvcompress.attach(model), and make a new cache if tokens were lost."
            )
        if self._pending is not None:
            raise CacheStateError(
                f"layer {self._pending.layer_idx} was updated but never attended through transformers' attention "
                "interface: the model works on the keys between update and attention, or shares them, which "
                "compression does not support. Use DynamicCache for this model."
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last ``-tokens_to_remove`` tokens back; a positive number is the length that remains.

        Raises:
            CacheStateError: tokens have been evicted, so that an earlier state cannot be restored.
        """
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Makes sequence ``i`` what sequence ``beam_idx[i]`` was, as beam search does at every step."""
        if self.decode_graph is not None:
            tell_once("beam search reorders the cache at every step")
        super().reorder_cache(beam_idx)

    @property
    def is_compileable(self) -> bool:
        """Whether transformers may compile the decode step of its own accord: not where it is captured anyway."""
        return self.decode_graph is None and bool(super().is_compileable)

    def forget_step(self) -> None:
        """Forgets a step that began and did not end, and of which nothing has reached the device."""
        self._pending = None
        for layer in self.compressed_layers:
            layer.pending = False

    def reset(self) -> None:
        """Forgets everything: the cache is as new."""
        if self.decode_graph is not None:
            self.decode_graph.drop()
        # transformers' own layers are replaced: before 5.20 a reset sliding layer keeps zeroed keys of the old batch.
        for index, blank in self._blank_layers.items():
            self.layers[index] = deepcopy(blank)
        for layer in self.compressed_layers:
            layer.reset()
        self.forget_step()
        self.cascade = self._new_cascade(self.cascade.slack)

    # ---- observers ------------------------------------------------------------------------------------------------

    def add_observer(self, observer: Observer) -> None:
        """Lets an observer hear ``on_prefill``, ``on_evict`` and ``on_decode``.

        A layer's ``on_prefill`` comes when it has been scored. Whenever budgets are allocated (see ``cascade_every``)
        follow ``on_evict`` of stage ``"cascade"`` for the earlier layers that are trimmed, then of stage ``"prefill"``
        for those that waited, each in the order of the layers, where tokens go; on a GPU that may be after the
        ``on_prefill`` of one more layer. Until then a waiting layer holds what it held before this prefill. A token
        that goes in its layer's own turn might, with budgets allocated more often, have been trimmed later.
        """
        self.observers.append(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Takes an observer away."""
        self.observers.remove(observer)

    # ---- introspection --------------------------------------------------------------------------------------------

    def layer(self, layer_idx: int) -> CompressedLayer:
        """The compressed layer of an index of the model.

        Raises:
            ValueError: that layer is not compressed, or holds nothing yet.
        """
        layer = self.layers[layer_idx] if 0 <= layer_idx < len(self.layers) else None
        if not isinstance(layer, CompressedLayer):
            known = ", ".join(str(entry.layer_idx) for entry in self.compressed_layers)
            raise ValueError(f"layer {layer_idx} is not compressed; compressed layers: {known}")
        if layer.store is None:
            raise ValueError(f"layer {layer_idx} holds nothing yet. Run the model with this cache first.")
        return layer

    def kept_positions(self, layer_idx: int) -> torch.Tensor:
        """Which tokens a layer holds.

        Args:
            layer_idx: index of the layer in the model.

        Returns:
            int64 ``[batch, kv_heads, most]``: absolute positions, i.e. columns of the (padded) ``input_ids`` and of
            what was generated; ascending, for ``CakeReference`` in storage order; -1 padded at the end of shorter rows.
        """
        layer = self.layer(layer_idx)
        store = layer.store
        if store is None:
            raise ValueError(f"layer {layer_idx} holds nothing yet")
        positions = store.dense(store.slots.positions, -1)
        if not self.policy.decode_rule.storage_order:
            return ascending(positions)
        if layer.order is not None:
            positions = positions.gather(-1, layer.order.order.view(*positions.shape[:2], -1))
        most = int((positions >= 0).sum(-1).max())
        return positions[..., :most].clone()

    def statistics(self, layer_idx: int) -> LayerStatistics:
        """What the last prefill found out about a layer.

        Raises:
            ValueError: the layer is not compressed, or holds nothing yet.
        """
        statistics = self.layer(layer_idx).statistics
        if statistics is None:
            raise ValueError(f"layer {layer_idx} holds nothing yet. Run the model with this cache first.")
        return statistics

    @property
    def num_bytes(self) -> int:
        """Bytes of the storages that the cache really holds, all layers and bookkeeping included.

        During a prefill also keys and values of the blocks that wait for their budgets, or for a device to tell them.
        """
        return sum(layer_bytes(layer) for layer in self.layers) + self.cascade.pending_bytes

    def report(self) -> CacheReport:
        """Bytes held, bytes of a full cache, and tokens kept per layer."""
        reports = [layer_report(layer) for layer in self.compressed_layers if layer.store is not None]
        others = [layer for layer in self.layers if not isinstance(layer, CompressedLayer)]
        other_bytes = sum(layer_bytes(layer) for layer in others)
        return CacheReport(
            policy=self.policy.name,
            seen=int(self.get_seq_length()),
            num_bytes=self.num_bytes,
            full_bytes=sum(report.full_bytes for report in reports) + other_bytes,
            layers=tuple(reports),
        )
