"""The closed vocabulary of the sums: special tokens, three words and the ten digits."""

from typing import Final

SPECIAL_TOKENS: Final = ("<pad>", "<mask>", "<unk>")
PAD_ID: Final = 0
MASK_ID: Final = 1
UNKNOWN_ID: Final = 2

WORDS: Final = (*SPECIAL_TOKENS, "add", "plus", "equals", *"0123456789")
WORD_TO_ID: Final = {word: index for index, word in enumerate(WORDS)}
VOCABULARY_SIZE: Final = len(WORDS)

ADD_ID: Final = WORD_TO_ID["add"]
PLUS_ID: Final = WORD_TO_ID["plus"]
EQUALS_ID: Final = WORD_TO_ID["equals"]
FIRST_DIGIT_ID: Final = WORD_TO_ID["0"]
