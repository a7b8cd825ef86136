"""Errors of the engine. Each message names the rule, what was got, and the way out."""


class CompressionError(Exception):
    """Base of the errors that the engine raises by itself."""


class UnsupportedModelError(CompressionError, ValueError):
    """The model cannot be compressed, or not in this way."""


class CacheStateError(CompressionError, RuntimeError):
    """The cache was used in a way that would give wrong tokens."""
