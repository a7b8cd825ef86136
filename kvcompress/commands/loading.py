"""Loads the model and tokenizer that a command names, and says in one line why where that fails."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from rich.console import Console
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from kvcompress.commands.failures import CommandError, first_line
from kvcompress.commands.model_names import HUB_IDS, is_short_name

EMBEDDED = "embedded"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a model runs.

    Attributes:
        device: the device.
        dtype: dtype of its weights; None: the model's own.
    """

    device: torch.device
    dtype: torch.dtype | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        name: what the user called it.
        model: the model, in evaluation mode, on its device.
        tokenizer: its tokenizer.
        warnings: what the user should know about it.
    """

    name: str
    model: PreTrainedModel
    tokenizer: Any
    warnings: tuple[str, ...]


def choose_place(device: str, dtype: str) -> Place:
    """Turns the options ``--device`` and ``--dtype`` into what torch understands.

    Raises:
        CommandError: unknown, or not on this machine.
    """
    name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise CommandError(f"--device must be auto, cpu, cuda or cuda:N; got {device!r}") from None
    _check_device(chosen)
    if dtype == "auto":
        return Place(device=chosen, dtype=torch.float32 if chosen.type == "cpu" else None)
    if dtype not in DTYPES:
        raise CommandError(f"--dtype must be one of auto, {', '.join(DTYPES)}; got {dtype!r}")
    return Place(device=chosen, dtype=DTYPES[dtype])


def _check_device(device: torch.device) -> None:
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            there = f"this machine has {count}" if count else "torch sees none here"
            raise CommandError(f"--device {device} needs that CUDA device; {there}. Use --device auto or cpu.")
        return
    try:
        torch.empty(1, device=device)
        usable = device.type != "meta"
    except (RuntimeError, NotImplementedError, AssertionError):
        usable = False
    if not usable:
        raise CommandError(f"--device must be one that this machine has; got {device}. Use --device auto or cpu.")


def load_model(name: str | None, place: Place) -> LoadedModel:
    """Loads a decoder and its tokenizer. Only safetensors are read, and no code of a model is run.

    Args:
        name: a folder, an id on the hub, a short name of one, or None for the embedded model.
        place: where it shall run.

    Raises:
        CommandError: it cannot be found, read or compressed.
    """
    for library in (transformers_logging, hub_logging):
        library.set_verbosity_error()  # what they would say is said here, in one line
    transformers_logging.disable_progress_bar()
    source = _source(name)
    with _waiting(f"loading {name or 'the embedded model'}"):
        _check_config(source, name or EMBEDDED)
        model, info = _read_weights(source, place)
        tokenizer = _read_tokenizer(source)
    if name is None and place.device.type == "cpu":
        torch.set_num_threads(1)  # the model is too small to share; waiting for busy processors costs seconds
    return LoadedModel(
        name=name or EMBEDDED,
        model=model.to(place.device).eval(),
        tokenizer=tokenizer,
        warnings=_missing_weights(sorted(info["missing_keys"])),
    )


def _waiting(what: str) -> AbstractContextManager[object]:
    """Shows on a terminal that something goes on."""
    return Console(stderr=True).status(what) if sys.stderr.isatty() else nullcontext()


def _read_weights(source: str, place: Place) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers has to say about its weights."""
    auto: Any = AutoModelForCausalLM  # typed for a call that returns the model alone
    try:
        model, info = auto.from_pretrained(
            source,
            dtype="auto" if place.dtype is None else place.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the mismatch is named below
        )
    except Exception as error:  # a damaged file can raise anything
        raise _cannot_load(source, error) from error
    if info["mismatched_keys"]:
        weight, got, wanted = sorted(info["mismatched_keys"])[0]
        raise CommandError(
            f"the weights of --model {source!r} must have the shapes of its config; {weight} has "
            f"{tuple(got)} and must have {tuple(wanted)}. Give weights and config that belong together."
        )
    causal = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    if causal and not any(causal):
        raise CommandError(
            f"--model must be a decoder; got {source!r}, whose attention looks ahead "
            f"({type(model).__name__}). Give a model such as Llama or Qwen."
        )
    return model, info


def _read_tokenizer(source: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise CommandError(
            f"--model {source!r} must come with its tokenizer (tokenizer.json); none can be loaded from there "
            f"({type(error).__name__}). Save the tokenizer into the same folder."
        ) from error


def _source(name: str | None) -> str:
    """The folder or hub id to load from."""
    if name is None:
        from kvcompress.bench.testbed.location import MODEL_DIR

        if not (MODEL_DIR / "model.safetensors").is_file():
            raise CommandError(
                f"the embedded model should be in {MODEL_DIR}; it is not in this copy of the package. "
                "Install it whole, or give --model."
            )
        return str(MODEL_DIR)
    if not name.strip():
        raise CommandError("--model must be a folder with config.json, or a hub id; got nothing.")
    if is_short_name(name):
        return HUB_IDS[name]
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CommandError(
                f"--model must be a folder with config.json, as save_pretrained writes it; {name!r} has none."
            )
        return str(path)
    if path.exists():
        raise CommandError(f"--model must be a folder or a hub id; got the file {name!r}. Give its folder.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise CommandError(f"--model must be a folder with config.json, or a hub id; there is no {name!r}.")
    return name


def _check_config(source: str, name: str) -> None:
    """Looks at the config alone, so that nothing is downloaded in vain."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise _cannot_load(source, error) from error
    if getattr(config, "is_encoder_decoder", False):
        raise CommandError(
            f"--model must be a decoder; got {name!r}, an encoder-decoder model ({config.model_type}). "
            "Give a model that only decodes, such as Llama or Qwen."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CommandError(
            f"--model must be a decoder that generates text; got {name!r}, a {config.model_type} model, "
            "which AutoModelForCausalLM does not load. Give a model such as Llama or Qwen."
        )


def _cannot_load(source: str, error: Exception) -> CommandError:
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return CommandError(f"--model {source!r} brings code of its own, which is never run. Give another model.")
    if Path(source).is_dir():
        if not any(Path(source).glob("*.safetensors")):
            return CommandError(
                f"--model {source!r} must hold its weights as safetensors (others can run code and are never "
                "read); it has none. Convert it: load it where you trust it, then save_pretrained(folder)."
            )
        return CommandError(
            f"--model {source!r} cannot be loaded; its files are damaged or incomplete: "
            f"{type(error).__name__}: {first_line(error)}"
        )
    return CommandError(
        f"--model must be a folder with config.json or the id of a model on the Hugging Face hub; {source!r} "
        f"is no folder, and the hub gave no such model with safetensors: {first_line(error)} Check the "
        "spelling, the network, and your login where the model is gated."
    )


def _missing_weights(missing: list[str]) -> tuple[str, ...]:
    if not missing:
        return ()
    return (
        f"weights that are not in the model's files were drawn at random ({len(missing)}, e.g. {missing[0]}), "
        "so its text means nothing. Is this a checkpoint of a language model?",
    )
