"""What the commands that study a cache share: the model, and a text cut to size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from kvcompress.commands.failures import CommandError, warn
from kvcompress.commands.loading import LoadedModel, choose_place, load_model
from kvcompress.commands.texts import choose_text

_LEAST_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The model and the text that a command was given."""

    model: str | None
    device: str
    dtype: str
    prompt: str | None
    prompt_file: Path | None
    use_wikitext: bool
    wikitext_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A model and a text.

    Attributes:
        loaded: the model.
        ids: int64 ``[tokens]``, on the CPU; the first ``context`` of them are studied.
        context: how many.
        steps: predictions after them that are compared; 0: none.
    """

    loaded: LoadedModel
    ids: torch.Tensor
    context: int
    steps: int

    @property
    def windows(self) -> torch.Tensor:
        """int64 ``[1, context + steps + 1]``, what is forced."""
        return self.ids[None, : self.context + self.steps + 1]

    @property
    def prompt(self) -> list[int]:
        """The tokens that are studied."""
        ids: list[int] = self.ids[: self.context].tolist()
        return ids

    def head(self, schema: str) -> dict[str, Any]:
        """What every result begins with."""
        return {"schema": schema, "model": describe_model(self.loaded), "tokens": self.context}


def describe_model(loaded: LoadedModel) -> dict[str, str]:
    """Name, device and dtype of a model."""
    return {
        "name": loaded.name,
        "device": str(loaded.model.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }


def begin(source: Source, *, sequence_length: int, steps: int) -> Study:
    """Loads the model and cuts the text to size; says on stderr where it is shorter than asked for.

    Args:
        source: the model and the text.
        sequence_length: tokens to study.
        steps: predictions after them to compare; 0: none.

    Raises:
        CommandError: something cannot be used, or the text is too short.
    """
    loaded = load_model(source.model, choose_place(source.device, source.dtype))
    for message in loaded.warnings:
        warn(message)
    text = choose_text(
        source.prompt,
        source.prompt_file,
        source.use_wikitext,
        source.wikitext_index,
        loaded.tokenizer,
        embedded=source.model is None,
    )
    ids = loaded.tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0].long()
    after = steps + 1 if steps else 0
    context = min(sequence_length, len(ids) - after)
    if context < _LEAST_TOKENS:
        raise CommandError(
            f"the text must have at least {_LEAST_TOKENS + after} tokens ({_LEAST_TOKENS} to study and {after} after "
            f"them); it has {len(ids)}. Give a longer one."
        )
    _check_positions(loaded, context + after)
    if context < sequence_length:
        typer.echo(f"the text has {len(ids)} tokens: its first {context} are studied", err=True)
    return Study(loaded=loaded, ids=ids[: context + after], context=context, steps=steps)


def _check_positions(loaded: LoadedModel, tokens: int) -> None:
    limit = getattr(loaded.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if isinstance(limit, int) and tokens > limit:
        raise CommandError(
            f"the model {loaded.name!r} was made for {limit} positions, and {tokens} tokens were asked for. Give a "
            "smaller --sequence-length."
        )


def layers_of(study: Study, wanted: Sequence[int] | None) -> list[Any]:
    """The cache of the text that is studied, layer by layer; warns of layers that do not keep all of it.

    Raises:
        ValueError: a layer that is not there.
    """
    from kvcompress.analysis.factorisation.layer_states import cached_text

    found = cached_text(study.loaded.model, study.prompt)
    if found.left_out and wanted is None:
        warn(f"layers {', '.join(map(str, found.left_out))} do not keep all {study.context} tokens and are left out")
    return list(found.pick(wanted))
