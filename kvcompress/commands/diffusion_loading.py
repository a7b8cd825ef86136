"""Loads the masked language model that ``kvcompress diffusion`` runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from kvcompress.commands.failures import CommandError, first_line
from kvcompress.commands.loading import EMBEDDED, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedModel:
    """A masked language model that is ready to run.

    Attributes:
        name: what the user called it.
        model: the model, in evaluation mode, on its device.
        tokenizer: its tokenizer.
        mask_id: id of its mask token.
    """

    name: str
    model: Any
    tokenizer: Any
    mask_id: int

    def encode(self, text: str) -> torch.Tensor:
        """Ids of a prompt, int64 ``[1, tokens]``, without special tokens.

        Raises:
            CommandError: an empty prompt, or words that the tokenizer does not know.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise CommandError("the prompt must have at least one token; got none. Give --prompt or --prompt-file.")
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise CommandError(
                f"the prompt must be made of words that the vocabulary of {self.name!r} has; token "
                f"{ids.index(unknown) + 1} of {len(ids)} is not in it. Give another prompt, or another --model."
            )
        return torch.tensor([ids], device=self.model.device)


def load_masked_model(name: str | None, place: Place) -> MaskedModel:
    """Loads a masked language model and its tokenizer. Only safetensors are read, and no code of a model is run.

    Args:
        name: a folder, an id on the hub, or None for the embedded model.
        place: where it shall run.

    Raises:
        CommandError: it cannot be found or read, is no masked language model, or has no mask token.
    """
    for library in (transformers_logging, hub_logging):
        library.set_verbosity_error()  # what they would say is said here, in one line
    transformers_logging.disable_progress_bar()
    source = _source(name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
            raise CommandError(
                f"--model must be a masked language model; got {name!r}, a {config.model_type} model, which "
                "AutoModelForMaskedLM does not load. Give a model such as ModernBERT."
            )
        auto: Any = AutoModelForMaskedLM  # typed for one dtype
        model = auto.from_pretrained(
            source, dtype="auto" if place.dtype is None else place.dtype, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except CommandError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise CommandError(
            f"--model {source!r} cannot be loaded: {type(error).__name__}: {first_line(error)} It must be a folder or "
            "hub id of a masked language model with config, safetensors and tokenizer; code of a model is never run."
        ) from error
    if tokenizer.mask_token_id is None:
        raise CommandError(
            f"--model must have a mask token in its vocabulary; the tokenizer of {name!r} has none. Give a model that "
            "was trained by masking."
        )
    if name is None and place.device.type == "cpu":
        torch.set_num_threads(1)  # the model is too small to share; waiting for busy processors costs seconds
    return MaskedModel(
        name=name or EMBEDDED,
        model=model.to(place.device).eval(),
        tokenizer=tokenizer,
        mask_id=int(tokenizer.mask_token_id),
    )


def _source(name: str | None) -> str:
    """The folder or hub id to load from."""
    if name is not None:
        path = Path(name).expanduser()
        return str(path) if path.is_dir() else name
    from kvcompress.bench.workloads.diffusion_lm.location import MODEL_DIR

    if not (MODEL_DIR / "model.safetensors").is_file():
        raise CommandError(
            f"the embedded model should be in {MODEL_DIR}; it is not in this copy of the package. Install it whole, or "
            "give --model."
        )
    return str(MODEL_DIR)
