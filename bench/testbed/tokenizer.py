"""The testbed's tokenizer: vocabulary words as single tokens, any other text in byte pieces.

Built from the `tokenizers` library's parts: a space is put in front (so that the first word is ` word` like
the others), bytes are mapped to printable characters, and a unigram model prefers whole words to bytes. Every
byte has a piece, so there is no unknown token and every text comes back unchanged from decoding.
"""

from typing import Final

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kvcompress.bench.testbed.vocabulary import BOS_ID, SPECIAL_TOKENS, WORDS

MAX_POSITIONS: Final = 4096

_WORD_SCORE = -1.0
# A word must beat any spelling of itself, so a byte costs more than a word.
_BYTE_SCORE = -10.0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer, with `<bos>` put first, padding on the left, and the ids of `vocabulary.py`."""
    space = "\u0120"  # the byte-level name of a space
    pieces = [(token, _BYTE_SCORE) for token in SPECIAL_TOKENS]
    pieces += [(character, _BYTE_SCORE) for character in sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [(space + word, _WORD_SCORE) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=None, byte_fallback=False))
    tokenizer.normalizer = normalizers.Prepend(" ")
    # No splitting by regular expression: it would part the letters of `x9` from its digits.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
