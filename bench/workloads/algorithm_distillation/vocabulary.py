"""Words of a history: cells, actions and rewards, three per step, after one `<bos>`."""

from typing import Final

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kvcompress.bench.workloads.algorithm_distillation.darkroom import ACTIONS, CELLS, EPISODE_STEPS, SIZE, Ints

TOKENS_PER_STEP: Final = 3
EPISODE_TOKENS: Final = TOKENS_PER_STEP * EPISODE_STEPS
MAX_EPISODES: Final = 20
MAX_POSITIONS: Final = 1 + MAX_EPISODES * EPISODE_TOKENS

CELL_WORDS: Final = tuple(f"cell{row}{column}" for row in range(SIZE) for column in range(SIZE))
REWARD_WORDS: Final = ("nothing", "reward")
WORDS: Final = ("<pad>", "<bos>", *CELL_WORDS, *ACTIONS, *REWARD_WORDS)
PAD_ID: Final = 0
BOS_ID: Final = 1
FIRST_CELL: Final = 2
FIRST_ACTION: Final = FIRST_CELL + CELLS
FIRST_REWARD: Final = FIRST_ACTION + len(ACTIONS)
VOCABULARY_SIZE: Final = len(WORDS)


def encode(cells: Ints, actions: Ints, rewards: Ints) -> Ints:
    """Return histories as token ids.

    Args:
        cells: int64 [histories, steps], the cell that each action was taken in.
        actions: int64 [histories, steps].
        rewards: int64 [histories, steps].

    Returns:
        int64 [histories, 1 + 3 * steps]: `<bos>`, then cell, action and reward of each step.
    """
    steps = np.stack((cells + FIRST_CELL, actions + FIRST_ACTION, rewards + FIRST_REWARD), axis=-1)
    ids = steps.reshape(len(cells), -1)
    return np.concatenate((np.full((len(ids), 1), BOS_ID), ids), axis=1)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words, with `<bos>` put first, that refuses other words."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
