"""Where the shipped diffusion model is, and how to load it."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import ModernBertForMaskedLM, PreTrainedTokenizerFast

MODEL_DIR: Final = Path(__file__).resolve().parent / "model"
TRAINING_LOG_FILE: Final = Path(__file__).resolve().parent / "training_log.jsonl"


def load_diffusion_model(folder: Path = MODEL_DIR) -> "tuple[ModernBertForMaskedLM, PreTrainedTokenizerFast]":
    """Load the model and its tokenizer from disk, without any network access.

    Args:
        folder: a folder written by `kvcompress diffusion train`.

    Returns:
        The model in evaluation mode and float32 on the CPU, and its tokenizer.

    Raises:
        FileNotFoundError: if the folder has no model.
    """
    # Imported here so that asking for the path alone stays cheap.
    import torch
    from transformers import ModernBertForMaskedLM, PreTrainedTokenizerFast

    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"folder must hold model.safetensors, got {folder}; "
            "train one with `kvcompress diffusion train --output-dir DIR` and take DIR/model"
        )
    model = ModernBertForMaskedLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
