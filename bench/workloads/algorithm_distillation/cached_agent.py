"""An agent that keeps the keys and values of its history and reads only what is new."""

from collections.abc import Callable

from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from kvcompress.bench.workloads.algorithm_distillation.history_length import check_length
from kvcompress.bench.workloads.algorithm_distillation.rollout import action_logits
from kvcompress.engine.cache import CompressedCache
from kvcompress.engine.cache_argument import cache_argument


class CachedAgent:
    """Reads the new tokens of each step with a cache of all before, in one pass.

    Attributes:
        model: a decoder over the vocabulary.
        cache: the cache in use; that of the last game until `begin` is called again.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        """Set the agent up.

        Args:
            model: in evaluation mode, on the CPU.
        """
        self.model = model
        self.cache = DynamicCache()

    @property
    def held_tokens(self) -> float:
        """Tokens in the cache."""
        return float(self.cache.get_seq_length())

    def begin(self, rooms: int) -> None:
        """Take a new cache."""
        self.cache = DynamicCache()

    def observe(self, ids: Tensor) -> Tensor:
        """Read the new tokens; see `Agent.observe`."""
        check_length(self.model, self.cache.get_seq_length() + ids.shape[1])
        output = self.model(input_ids=ids, **cache_argument(self.cache), use_cache=True, logits_to_keep=1)
        return action_logits(output.logits[:, -1])


class EngineAgent:
    """Reads the new tokens one by one with a compressed cache of the engine, which evicts at every token.

    Attributes:
        model: a decoder over the vocabulary.
        cache: as of `CachedAgent`.
    """

    def __init__(self, model: LlamaForCausalLM, make_cache: Callable[[], CompressedCache]) -> None:
        """Set the agent up.

        Args:
            model: in evaluation mode, on the CPU.
            make_cache: gives an empty cache for this model.
        """
        self.model = model
        self.cache = make_cache()
        self._make_cache = make_cache

    @property
    def held_tokens(self) -> float:
        """Tokens in the cache: the mean over layers and kv heads."""
        layers = range(self.model.config.num_hidden_layers)
        return float(
            sum((self.cache.kept_positions(layer) >= 0).sum(-1).float().mean() for layer in layers) / len(layers)
        )

    def begin(self, rooms: int) -> None:
        """Take a new cache."""
        self.cache = self._make_cache()

    def observe(self, ids: Tensor) -> Tensor:
        """Read the new tokens; see `Agent.observe`.

        The first call reads them as a prompt; later ones decode.
        """
        seen = self.cache.get_seq_length()
        check_length(self.model, seen + ids.shape[1])
        for part in ids.split(ids.shape[1] if seen == 0 else 1, dim=1):
            output = self.model(input_ids=part, **cache_argument(self.cache), use_cache=True, logits_to_keep=1)
        return action_logits(output.logits[:, -1])
