"""kvcompress: compresses the KV cache of Hugging Face decoders while they run."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvcompress.cake import CakeCache
    from kvcompress.engine.attach import attach, detach
    from kvcompress.engine.cache import CompressedCache
    from kvcompress.engine.events import DecodeEvent, EvictEvent, Observer, PrefillEvent
    from kvcompress.engine.report import CacheReport, LayerReport
    from kvcompress.errors import CacheStateError, CompressionError, UnsupportedModelError
    from kvcompress.policies.adakv import AdaKV
    from kvcompress.policies.base import Policy
    from kvcompress.policies.cake import Cake
    from kvcompress.policies.cake_reference import CakeReference
    from kvcompress.policies.criticalkv import CriticalKV
    from kvcompress.policies.defensivekv import DefensiveKV, LayerDefensiveKV
    from kvcompress.policies.expected_attention import ExpectedAttention
    from kvcompress.policies.full import Full
    from kvcompress.policies.h2o import H2O
    from kvcompress.policies.keydiff import KeyDiff
    from kvcompress.policies.knorm import Knorm
    from kvcompress.policies.kvc import KVC
    from kvcompress.policies.observed_attention import ObservedAttention
    from kvcompress.policies.pyramidkv import PyramidKV
    from kvcompress.policies.random_eviction import Random
    from kvcompress.policies.registry import POLICIES, make_policy
    from kvcompress.policies.snapkv import SnapKV
    from kvcompress.policies.streaming_llm import StreamingLLM
    from kvcompress.policies.tova import TOVA

__all__ = [
    "H2O",
    "KVC",
    "POLICIES",
    "TOVA",
    "AdaKV",
    "CacheReport",
    "CacheStateError",
    "Cake",
    "CakeCache",
    "CakeReference",
    "CompressedCache",
    "CompressionError",
    "CriticalKV",
    "DecodeEvent",
    "DefensiveKV",
    "EvictEvent",
    "ExpectedAttention",
    "Full",
    "KeyDiff",
    "Knorm",
    "LayerDefensiveKV",
    "LayerReport",
    "ObservedAttention",
    "Observer",
    "Policy",
    "PrefillEvent",
    "PyramidKV",
    "Random",
    "SnapKV",
    "StreamingLLM",
    "UnsupportedModelError",
    "attach",
    "detach",
    "make_policy",
]

# Loaded when first asked for: importing torch takes seconds, and `kvcompress --help` needs none of it.
_MODULES = {
    "kvcompress.cake": ("CakeCache",),
    "kvcompress.engine.attach": ("attach", "detach"),
    "kvcompress.engine.cache": ("CompressedCache",),
    "kvcompress.engine.events": ("DecodeEvent", "EvictEvent", "Observer", "PrefillEvent"),
    "kvcompress.engine.report": ("CacheReport", "LayerReport"),
    "kvcompress.errors": ("CacheStateError", "CompressionError", "UnsupportedModelError"),
    "kvcompress.policies.adakv": ("AdaKV",),
    "kvcompress.policies.base": ("Policy",),
    "kvcompress.policies.cake": ("Cake",),
    "kvcompress.policies.cake_reference": ("CakeReference",),
    "kvcompress.policies.criticalkv": ("CriticalKV",),
    "kvcompress.policies.defensivekv": ("DefensiveKV", "LayerDefensiveKV"),
    "kvcompress.policies.expected_attention": ("ExpectedAttention",),
    "kvcompress.policies.full": ("Full",),
    "kvcompress.policies.h2o": ("H2O",),
    "kvcompress.policies.keydiff": ("KeyDiff",),
    "kvcompress.policies.knorm": ("Knorm",),
    "kvcompress.policies.kvc": ("KVC",),
    "kvcompress.policies.observed_attention": ("ObservedAttention",),
    "kvcompress.policies.pyramidkv": ("PyramidKV",),
    "kvcompress.policies.random_eviction": ("Random",),
    "kvcompress.policies.registry": ("POLICIES", "make_policy"),
    "kvcompress.policies.snapkv": ("SnapKV",),
    "kvcompress.policies.streaming_llm": ("StreamingLLM",),
    "kvcompress.policies.tova": ("TOVA",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
