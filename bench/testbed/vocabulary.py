"""The closed vocabulary of the testbed: special tokens, 256 byte pieces and whole words.

Ids are laid out in that order: `<pad>`, `<bos>`, `<eos>`, then one piece per byte (so that any text can be
written), then the words. Task generators work on ids through `word_ids` and never need the tokenizer.
"""

from typing import Final

SPECIAL_TOKENS: Final = ("<pad>", "<bos>", "<eos>")
PAD_ID: Final = 0
BOS_ID: Final = 1
EOS_ID: Final = 2
BYTE_IDS: Final = range(3, 259)
FIRST_WORD_ID: Final = 259


def _words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


TASK_WORDS: Final = _words("the code of is ? = ; : . owns copy [ ] often a and to")

VARIABLES: Final = tuple(f"x{number}" for number in range(1, 65))

# Words of the haystack's grammar (see `haystack.py`).
NOUNS: Final = _words(
    """
    man woman boy girl king queen farmer teacher doctor sailor driver singer painter writer soldier baker
    child friend brother sister father mother uncle aunt guest neighbor stranger student captain hunter
    house room road bridge river forest garden market village city school church harbor station tower
    field
    """
)
VERBS: Final = _words(
    """
    walks runs looks turns comes goes sits stands waits works sings sleeps talks listens points waves
    smiles moves travels returns hurries climbs falls rests plays laughs calls writes
    """
)
ADJECTIVES: Final = _words(
    """
    old young tall short quiet loud happy sad tired brave clever gentle rich poor strong weak kind proud
    """
)
PREPOSITIONS: Final = _words(
    """
    near behind toward under beside past around across inside beyond
    """
)

# Words that tasks draw keys and values from.
CONTENT_WORDS: Final = _words(
    """
    apple banana cherry lemon orange grape melon peach pear plum mango olive onion garlic carrot potato
    tomato pepper salt sugar honey butter bread cheese milk cream rice wheat corn bean nut seed flour
    soup stew salad cake pie jam tea coffee juice wine water ice snow rain storm wind cloud thunder fog
    frost sun moon star sky dawn dusk night morning noon winter spring summer autumn hill mountain valley
    desert island beach ocean lake pond stream canyon cave cliff rock stone sand clay mud dust gold
    silver iron copper tin steel brass lead glass marble granite coal oil gas fire smoke ash flame candle
    lamp torch mirror window door gate wall floor roof stair kitchen cellar attic table chair bed desk
    shelf drawer box basket bag bottle cup plate bowl spoon fork knife pan pot kettle oven stove clock
    watch bell drum flute violin piano guitar trumpet harp song dance poem story book page letter pen
    pencil paper ink map chart key lock chain rope string thread needle cloth cotton wool silk leather
    fur coat shirt hat glove boot shoe sock belt button ribbon ring crown jewel pearl ruby diamond coin
    purse wallet ticket stamp flag badge sword shield spear arrow bow armor helmet castle palace temple
    tent cabin barn fence well mill farm orchard meadow tree leaf branch root bark flower rose lily daisy
    tulip violet ivy moss fern grass weed bush vine oak pine maple cedar willow birch palm bamboo cactus
    dog cat horse cow sheep goat pig hen duck goose rabbit mouse rat fox wolf bear lion tiger leopard
    elephant monkey camel deer moose zebra giraffe kangaroo panda otter beaver seal whale dolphin shark
    salmon trout crab lobster shrimp snail frog toad turtle lizard snake dragon eagle hawk owl crow raven
    robin swan parrot pigeon sparrow bee ant spider fly moth beetle worm cricket wagon cart train truck
    bus car bicycle boat ship canoe raft anchor sail engine wheel gear motor pump pipe wire cable battery
    magnet lens camera radio phone hammer nail screw saw drill axe shovel rake broom brush bucket ladder
    tool brick board beam plank red blue green yellow purple pink brown black white gray scarlet amber
    one two three four five six seven eight nine ten twelve twenty hundred thousand million half north
    south east west left right front back top bottom corner edge center circle square triangle cube paris
    london rome berlin madrid vienna prague oslo dublin athens cairo delhi tokyo lima quito havana boston
    anna ben clara david emma frank grace henry irene jack kate leo maria nora oscar paul rosa simon tina
    victor peace war love hope fear joy anger trust truth dream luck fate honor glory power wisdom magic
    music art science math law trade sport game chess puzzle prize gift party feast holiday journey
    voyage shadow echo heart hand foot arm leg eye ear nose mouth tooth bone skin blood brain finger
    thumb knee shoulder
    """
)

WORDS: Final = TASK_WORDS + VARIABLES + NOUNS + VERBS + ADJECTIVES + PREPOSITIONS + CONTENT_WORDS
WORD_TO_ID: Final = {word: FIRST_WORD_ID + index for index, word in enumerate(WORDS)}
VOCABULARY_SIZE: Final = FIRST_WORD_ID + len(WORDS)


def word_ids(text: str) -> tuple[int, ...]:
    """Return the ids of space-separated vocabulary words.

    Args:
        text: words of the vocabulary with single spaces between them.

    Returns:
        One id per word.

    Raises:
        ValueError: if a word is not in the vocabulary; the tokenizer spells such words in byte pieces.
    """
    words = text.split()
    unknown = [word for word in words if word not in WORD_TO_ID]
    if unknown:
        raise ValueError(
            f"text must consist of vocabulary words, got {unknown[:5]} which are not; "
            "use the tokenizer (load_testbed) for free text"
        )
    return tuple(WORD_TO_ID[word] for word in words)


def ids_text(ids: list[int] | tuple[int, ...]) -> str:
    """Return word ids as space-separated text; the inverse of `word_ids`.

    Args:
        ids: word ids; `<pad>`, `<bos>` and `<eos>` are left out.

    Returns:
        The text.

    Raises:
        ValueError: if an id is a byte piece or outside the vocabulary.
    """
    bad = [token for token in ids if token >= VOCABULARY_SIZE or token in BYTE_IDS]
    if bad:
        raise ValueError(
            f"ids must be word ids in [{FIRST_WORD_ID}, {VOCABULARY_SIZE}), got {bad[:5]}; "
            "use the tokenizer's decode for byte pieces"
        )
    return " ".join(WORDS[token - FIRST_WORD_ID] for token in ids if token >= FIRST_WORD_ID)
