"""CakeCache: CAKE with one line of code."""

from __future__ import annotations

from transformers import PreTrainedModel

from kvcompress.engine.cache import CompressedCache
from kvcompress.policies.cake import Cake
from kvcompress.presets import preset


class CakeCache(CompressedCache):
    """A :class:`CompressedCache` with the policy :class:`kvcompress.Cake`.

    Args:
        model: a decoder of transformers.
        cache_size: tokens kept per layer and head on average, window included.
        compression_ratio: instead of ``cache_size``: fraction of the prompt that is removed, in [0, 1).
        window_size: the last tokens, always kept; they score the others.
        tau1: temperature of the entropy in the layer preference.
        tau2: temperature of the variance in the layer preference.
        gamma: weight of the attention variance in the token score.
        sink_tokens: first tokens that are always kept.
        decode: decode rule, see :class:`kvcompress.Cake`.
        keep_statistics: see :class:`CompressedCache`, as are the following.
        compress_sliding: see there.
        cascade_every: see there.
        static: see there.
        backend: see there.
        one_launch: see there.
        cuda_graph: see there.

    Example:
        >>> cache = CakeCache(model, cache_size=1024)
        >>> model.generate(**inputs, past_key_values=cache, max_new_tokens=200)
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache_size: int | None = None,
        window_size: int = 32,
        tau1: float = 1.0,
        tau2: float = 1.0,
        gamma: float = 200.0,
        *,
        compression_ratio: float | None = None,
        sink_tokens: int = 0,
        decode: str = "accumulate",
        keep_statistics: bool = False,
        compress_sliding: bool | None = None,
        cascade_every: int = 1,
        static: bool = False,
        backend: str = "auto",
        one_launch: bool = False,
        cuda_graph: bool = False,
    ) -> None:
        policy = Cake(
            cache_size=cache_size,
            compression_ratio=compression_ratio,
            window_size=window_size,
            sink_tokens=sink_tokens,
            tau1=tau1,
            tau2=tau2,
            gamma=gamma,
            decode=decode,
        )
        super().__init__(
            model,
            policy,
            keep_statistics=keep_statistics,
            compress_sliding=compress_sliding,
            cascade_every=cascade_every,
            static=static,
            backend=backend,
            one_launch=one_launch,
            cuda_graph=cuda_graph,
        )

    @classmethod
    def from_preset(cls, name: str, model: PreTrainedModel, cache_size: int, **options: bool | int | str) -> CakeCache:
        """Makes a cache with the temperatures that the authors published for a model.

        Args:
            name: one of :data:`kvcompress.presets.PRESETS`, e.g. ``"llama3.1-8b-128k"``.
            model: a decoder of transformers.
            cache_size: tokens kept per layer on average; the settings of the nearest published size are taken.
            **options: further arguments of the class.

        Raises:
            ValueError: unknown preset.
        """
        temperatures = preset(name, cache_size)
        return cls(model, cache_size, tau1=temperatures.tau1, tau2=temperatures.tau2, **options)  # type: ignore[arg-type]
