"""kvcompress: compresses the KV cache of Hugging Face decoders while they run."""

from kvcompress.cake import CakeCache
from kvcompress.engine.attach import attach, detach
from kvcompress.engine.cache import CompressedCache
from kvcompress.engine.events import DecodeEvent, EvictEvent, Observer, PrefillEvent
from kvcompress.engine.report import CacheReport, LayerReport
from kvcompress.errors import CacheStateError, CompressionError, UnsupportedModelError
from kvcompress.policies.base import Policy
from kvcompress.policies.cake import Cake
from kvcompress.policies.cake_reference import CakeReference
from kvcompress.policies.full import Full
from kvcompress.policies.random_eviction import Random
from kvcompress.policies.registry import POLICIES, make_policy
from kvcompress.policies.snapkv import SnapKV
from kvcompress.policies.streaming_llm import StreamingLLM

__all__ = [
    "POLICIES",
    "CacheReport",
    "CacheStateError",
    "Cake",
    "CakeCache",
    "CakeReference",
    "CompressedCache",
    "CompressionError",
    "DecodeEvent",
    "EvictEvent",
    "Full",
    "LayerReport",
    "Observer",
    "Policy",
    "PrefillEvent",
    "Random",
    "SnapKV",
    "StreamingLLM",
    "UnsupportedModelError",
    "attach",
    "detach",
    "make_policy",
]
