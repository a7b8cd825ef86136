"""Where the shipped testbed model is, and how to load it."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MODEL_DIR: Final = Path(__file__).resolve().parent / "model"
EVALUATION_FILE: Final = Path(__file__).resolve().parent / "evaluation.json"
TRAINING_LOG_FILE: Final = Path(__file__).resolve().parent / "training_log.jsonl"


def load_testbed(
    dtype: "torch.dtype | None" = None, folder: Path = MODEL_DIR
) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast]":
    """Load the testbed model and its tokenizer from disk, without any network access.

    Args:
        dtype: dtype of the weights; `None` is `torch.float32` (the file holds float16).
        folder: a folder written by `kvcompress.bench.testbed.train`.

    Returns:
        The model in evaluation mode on the CPU, and its tokenizer.

    Raises:
        FileNotFoundError: if the folder has no model.
    """
    # Imported here so that asking for the path alone stays cheap.
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"folder must hold model.safetensors, got {folder}; "
            "train one with `python -m kvcompress.bench.testbed.train --out DIR` and take DIR/model"
        )
    model = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32 if dtype is None else dtype, local_files_only=True
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer
