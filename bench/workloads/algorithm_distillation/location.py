"""Where the shipped agent is, and how to load it or one of the user's."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvcompress.bench.workloads.algorithm_distillation.vocabulary import VOCABULARY_SIZE

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

MODEL_DIR: Final = Path(__file__).resolve().parent / "model"
TRAINING_LOG_FILE: Final = Path(__file__).resolve().parent / "training_log.jsonl"


def load_agent(folder: Path = MODEL_DIR) -> "LlamaForCausalLM":
    """Load an agent from disk, in float32 on the CPU, without any network access.

    Args:
        folder: a folder written by `kvcompress ad train`.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: if the folder has no model.
        ValueError: if it has another vocabulary, or is no Llama.
    """
    # Imported here so that asking for the path alone stays cheap.
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    if not (folder / "model.safetensors").is_file() or not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"an agent's folder must hold config.json and model.safetensors, got {folder}; "
            "train one with `kvcompress ad train --output-dir DIR` and take DIR/model"
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if not isinstance(config, LlamaConfig):
        raise ValueError(
            f"an agent must be a Llama as `kvcompress ad train` makes it, got {config.model_type} in {folder}"
        )
    if config.vocab_size != VOCABULARY_SIZE:
        raise ValueError(
            f"an agent's vocabulary must be the {VOCABULARY_SIZE} words of Darkroom's histories, "
            f"got {config.vocab_size} in {folder}; train one with `kvcompress ad train`"
        )
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.eval()
    return model
