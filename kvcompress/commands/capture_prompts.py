"""Texts as the tokens that a capture runs on: cut where they are too long, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from kvcompress.commands.failures import CommandError
from kvcompress.commands.generation import encode, length_warnings
from kvcompress.commands.loading import LoadedModel

# A tokenizer takes some hundred bytes of memory per character. Text takes about four characters a token, so what lies
# beyond this many would be cut anyway.
_MOST_CHARACTERS_PER_TOKEN: Final = 16
_LEAST_CHARACTERS: Final = 4096
_MOST_TOKENS: Final = 1 << 20  # where neither the user nor the model sets a limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How long a prompt may be.

    Attributes:
        tokens: most tokens.
        reason: what sets the limit.
    """

    tokens: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt.

    Attributes:
        ids: int64 ``[1, tokens]``, on the model's device.
        warnings: what was cut of it, and what else to tell.
    """

    ids: torch.Tensor
    warnings: tuple[str, ...]


def prompt_limit(loaded: LoadedModel, max_length: int | None, new_tokens: int) -> Limit:
    """Most tokens of a prompt.

    Args:
        loaded: the model.
        max_length: the user's limit; None: what the model's positions leave.
        new_tokens: tokens to generate.

    Raises:
        CommandError: the model has too few positions for that many new tokens.
    """
    if max_length is not None:
        return Limit(tokens=max_length, reason="--max-length")
    positions = getattr(loaded.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not isinstance(positions, int):
        return Limit(tokens=_MOST_TOKENS, reason="more take a --max-length")
    if positions - new_tokens < 2:
        raise CommandError(
            f"--max-new-tokens must leave room for a prompt in the {positions} positions of {loaded.name!r}; "
            f"got {new_tokens}"
        )
    reason = f"the model's {positions:,} positions less --max-new-tokens; --max-length sets another limit"
    return Limit(tokens=positions - new_tokens, reason=reason)


def make_prompt(loaded: LoadedModel, text: str, limit: Limit, new_tokens: int) -> Prompt:
    """Tokenises a text, and cuts it at its end where it is too long.

    Args:
        loaded: the model.
        text: the text.
        limit: most tokens of it.
        new_tokens: tokens that will be generated.

    Raises:
        CommandError: it has no tokens, or more than the model's table of positions takes.
    """
    most_characters = max(_MOST_CHARACTERS_PER_TOKEN * limit.tokens, _LEAST_CHARACTERS)
    ids = encode(loaded, text[:most_characters])
    whole = len(text) <= most_characters
    warnings = []
    if ids.shape[1] > limit.tokens:
        size = f"{ids.shape[1]:,} tokens" if whole else f"{len(text):,} characters"
        warnings.append(f"the prompt of {size} is cut to its first {limit.tokens:,} tokens ({limit.reason})")
        ids = ids[:, : limit.tokens].contiguous()
    elif not whole:
        warnings.append(
            f"the prompt of {len(text):,} characters is cut to its first {most_characters:,}, "
            f"{_MOST_CHARACTERS_PER_TOKEN} for each of at most {limit.tokens:,} tokens ({limit.reason}); they make "
            f"{ids.shape[1]:,} tokens"
        )
    warnings += length_warnings(loaded, ids.shape[1], new_tokens)
    return Prompt(ids=ids, warnings=tuple(warnings))
