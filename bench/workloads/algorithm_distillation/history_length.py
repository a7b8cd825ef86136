"""How long a history may be for a model."""

from transformers import PreTrainedModel

from kvcompress.bench.workloads.algorithm_distillation.vocabulary import EPISODE_TOKENS


def check_length(model: PreTrainedModel, tokens: int) -> None:
    """Refuse a history that the model has no positions for.

    Args:
        model: the agent's model.
        tokens: of the history, those that were compressed away included.

    Raises:
        ValueError: if it is longer than the model's positions.
    """
    positions = model.config.max_position_embeddings
    if tokens > positions:
        raise ValueError(
            f"a history must fit the model's {positions} positions, got {tokens} tokens; "
            f"play at most {(positions - 1) // EPISODE_TOKENS} episodes"
        )
