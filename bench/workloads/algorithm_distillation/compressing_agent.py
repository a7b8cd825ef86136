"""An agent that shrinks its cache every few steps, by what it attended to since the last time."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from kvcompress.bench.workloads.algorithm_distillation.compression import Compress
from kvcompress.bench.workloads.algorithm_distillation.held_history import HeldHistory, HeldLayer
from kvcompress.bench.workloads.algorithm_distillation.history_length import check_length
from kvcompress.bench.workloads.algorithm_distillation.rollout import action_logits
from kvcompress.engine.cache_argument import cache_argument


def attention_reader(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return a model on the same weights that can give out its attention."""
    config = type(model.config).from_dict(model.config.to_dict())
    config._attn_implementation = "eager"
    with torch.device("meta"):
        reader = LlamaForCausalLM(config)
    reader.load_state_dict(model.state_dict(), assign=True)
    # Not a parameter, so not in the state: rotary frequencies are taken over as they are.
    reader.model.rotary_emb = model.model.rotary_emb
    reader.eval()
    return reader


class CompressingAgent:
    """Reads the new tokens of each step with a cache that is compressed every `interval` steps.

    A merged token stands for several: `log(number)` is added to its attention logit, so that it weighs as much as its
    tokens did together.

    Attributes:
        model: a decoder over the vocabulary, whose attention can be read.
        budget: tokens held after a compression.
        interval: environment steps between two compressions.
    """

    def __init__(self, model: LlamaForCausalLM, compress: Compress, *, budget: int, interval: int) -> None:
        """Set the agent up.

        Args:
            model: in evaluation mode, on the CPU.
            compress: how a history is brought to the budget.
            budget: at least 8.
            interval: at least 1.

        Raises:
            ValueError: if a number is out of range.
        """
        if budget < 8 or interval < 1:
            raise ValueError(f"budget must be at least 8 and interval at least 1, got {budget} and {interval}")
        self.model = attention_reader(model)
        self.budget = budget
        self.interval = interval
        self._compress = compress
        self.begin(0)

    @property
    def held_tokens(self) -> float:
        """Tokens in the cache."""
        return float(self._history.held)

    def begin(self, rooms: int) -> None:
        """Forget everything."""
        config = self.model.config
        shape = (rooms, config.num_key_value_heads or config.num_attention_heads, 0)
        self._cache = DynamicCache()
        layers = [
            HeldLayer(keys=torch.empty(0), values=torch.empty(0), mass=torch.empty(shape))
            for _ in range(config.num_hidden_layers)
        ]
        self._history = HeldHistory(layers=layers, merged=torch.empty(0))
        self._seen = self._steps = 0

    def observe(self, ids: Tensor) -> Tensor:
        """Read the new tokens, and compress if it is time; see `Agent.observe`."""
        new = ids.shape[1]
        check_length(self.model, self._seen + new)
        output = self.model(
            input_ids=ids,
            position_ids=torch.arange(self._seen, self._seen + new)[None],
            attention_mask=self._mask(new),
            **cache_argument(self._cache),
            use_cache=True,
            output_attentions=True,
            logits_to_keep=1,
        )
        self._history.merged = torch.cat((self._history.merged, torch.ones(new)))
        layers: list[Any] = self._cache.layers  # Any: transformers types caches of all kinds of layers at once
        for held, layer, attention in zip(self._history.layers, layers, output.attentions, strict=True):
            held.keys, held.values = layer.keys, layer.values
            held.add_mass(attention)
        self._seen += new
        self._steps += 1
        if self._steps % self.interval == 0 and self._history.held > self.budget:
            self._shrink()
        return action_logits(output.logits[:, -1])

    def _mask(self, new: int) -> Tensor:
        """Return what is added to the attention logits, float32 [1, 1, new, held + new]."""
        past = self._history.merged.log().expand(new, -1)
        own = torch.full((new, new), float("-inf")).triu(1)
        return torch.cat((past, own), dim=1)[None, None]

    def _shrink(self) -> None:
        self._history = self._compress(self._history, self.budget)
        layers: list[Any] = self._cache.layers
        for held, layer in zip(self._history.layers, layers, strict=True):
            layer.keys, layer.values = held.keys, held.values
            held.mass = torch.zeros_like(held.mass)
