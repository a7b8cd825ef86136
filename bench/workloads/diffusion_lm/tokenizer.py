"""The sums' tokenizer: one token per word of the closed vocabulary, words parted by spaces."""

from typing import Final

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kvcompress.bench.workloads.diffusion_lm.vocabulary import WORD_TO_ID

MAX_POSITIONS: Final = 512


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer, with the ids of `vocabulary.py`; a word that is not in it becomes `<unk>`."""
    tokenizer = Tokenizer(models.WordLevel(dict(WORD_TO_ID), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        mask_token="<mask>",
        unk_token="<unk>",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
