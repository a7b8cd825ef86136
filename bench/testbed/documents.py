"""Builders of documents: a context with facts in it, and questions on those facts.

Training asks many questions of one document, evaluation one. A builder gets the room for the context in ids
and fills it exactly. Formats follow RULER (arXiv 2404.06654, section 3), in words of the closed vocabulary.
"""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from kvcompress.bench.testbed.haystack import hide, pick, pick_distinct, shuffled
from kvcompress.bench.testbed.vocabulary import BYTE_IDS, CONTENT_WORDS, VARIABLES, word_ids

_CONTENT = word_ids(" ".join(CONTENT_WORDS))
_VARIABLES = word_ids(" ".join(VARIABLES))
_THE_CODE_OF = list(word_ids("the code of"))
_IS, _STOP, _EQUALS, _SEMICOLON, _COLON, _ASK, _OWNS = word_ids("is . = ; : ? owns")
_COPY, _OPEN, _CLOSE, _OFTEN = word_ids("copy [ ] often")

NEEDLE_VALUES = 3
_FREQUENT_SHARES = (0.2, 0.14, 0.09)
_NOISE_WORDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question and its answer, as ids; the question starts with `?` and the answer follows it directly."""

    ids: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A context and questions on it.

    Attributes:
        context: ids of the context, without `<bos>`.
        is_filler: for each id of the context, whether it is filler text, which a language model can learn.
        questions: in random order, no two alike.
    """

    context: list[int]
    is_filler: list[bool]
    questions: list[Question]


def _finish(rng: Random, room: int, statements: list[list[int]], questions: list[Question], asked: int) -> Document:
    """Hide the statements in filler text and choose the questions to ask."""
    context, is_filler = hide(rng, statements, room)
    chosen = pick_distinct(rng, range(len(questions)), min(asked, len(questions)))
    return Document(context=context, is_filler=is_filler, questions=[questions[place] for place in chosen])


def needles(rng: Random, room: int, asked: int, keys: int) -> Document:
    """`the code of K is V1 V2 V3 .` hidden in filler; `? the code of K is` is answered `V1 V2 V3`.

    Args:
        rng: source of randomness.
        room: ids of the context.
        asked: questions wanted.
        keys: needles wanted; as many as fit (9 ids each) where the room is too small for them.

    Returns:
        The document.
    """
    keys = min(keys, room // 9)
    names = pick_distinct(rng, _CONTENT, keys)
    statements: list[list[int]] = []
    questions: list[Question] = []
    for name in names:
        values = [pick(rng, _CONTENT) for _ in range(NEEDLE_VALUES)]
        statement = [*_THE_CODE_OF, name, _IS]
        statements.append([*statement, *values, _STOP])
        questions.append(Question(ids=[_ASK, *statement], answer=values))
    return _finish(rng, room, statements, questions, asked)


def variables(rng: Random, room: int, asked: int, hops: int, chains: int) -> Document:
    """Chains `x3 = apple ;`, `x9 = x3 ;` in any order; `? x9 =` is answered `x3 = apple`, step by step.

    Args:
        rng: source of randomness.
        room: ids of the context.
        asked: questions wanted, each on the end of another chain.
        hops: statements to follow from the question to the word.
        chains: chains wanted; as many as fit (4 ids a statement) where the room is too small for them.

    Returns:
        The document.
    """
    chains = max(1, min(chains, room // (4 * hops), len(_VARIABLES) // hops))
    names = pick_distinct(rng, _VARIABLES, chains * hops)
    statements: list[list[int]] = []
    questions: list[Question] = []
    for chain in range(chains):
        links = [*names[chain * hops : (chain + 1) * hops], pick(rng, _CONTENT)]
        statements += [[left, _EQUALS, right, _SEMICOLON] for left, right in pairwise(links)]
        answer = [links[1]]
        for link in links[2:]:
            answer += [_EQUALS, link]
        questions.append(Question(ids=[_ASK, links[0], _EQUALS], answer=answer))
    return _finish(rng, room, shuffled(rng, statements), questions, asked)


def pairs(rng: Random, room: int, asked: int) -> Document:
    """`K1 K2 : V1 V2 ;` over and over, no filler but a cut sentence; `? K1 K2 :` is answered `V1 V2`."""
    statements: list[list[int]] = []
    questions: list[Question] = []
    seen: set[tuple[int, int]] = set()
    while len(statements) < room // 6:
        key = (pick(rng, _CONTENT), pick(rng, _CONTENT))
        if key in seen:
            continue
        seen.add(key)
        values = [pick(rng, _CONTENT), pick(rng, _CONTENT)]
        statements.append([*key, _COLON, *values, _SEMICOLON])
        questions.append(Question(ids=[_ASK, *key, _COLON], answer=values))
    return _finish(rng, room, statements, questions, asked)


def owners(rng: Random, room: int, asked: int, keys: int, values: int) -> Document:
    """`K owns V .`, several values a key, in any order; `? K owns` is answered by all of K's values.

    The answer lists the values in order of appearance, which makes the next token well defined in training;
    scoring takes them as a set.

    Args:
        rng: source of randomness.
        room: ids of the context.
        asked: questions wanted, each on another key.
        keys: keys wanted; as many as fit (4 ids a value) where the room is too small for them.
        values: values of each key, all different.

    Returns:
        The document.
    """
    keys = max(1, min(keys, room // (4 * values)))
    words = pick_distinct(rng, _CONTENT, keys * (values + 1))
    names, owned = words[:keys], words[keys:]
    statements = shuffled(rng, [[names[place % keys], _OWNS, word, _STOP] for place, word in enumerate(owned)])
    questions = [
        Question(ids=[_ASK, name, _OWNS], answer=[line[2] for line in statements if line[0] == name]) for name in names
    ]
    return _finish(rng, room, statements, questions, asked)


def copies(rng: Random, room: int, asked: int, size: int, byte_share: float = 0.0) -> Document:
    """`copy [ W1 .. Wn ]` hidden in filler; `? copy [` is answered `W1 .. Wn`.

    Args:
        rng: source of randomness.
        room: ids of the context.
        asked: questions wanted; there is one.
        size: words to copy; as many as fit where the room is too small for them.
        byte_share: share of byte pieces among them, so that in training these get embeddings too.

    Returns:
        The document.
    """
    size = max(1, min(size, room - 3))
    segment = [pick(rng, BYTE_IDS if rng.random() < byte_share else _CONTENT) for _ in range(size)]
    question = Question(ids=[_ASK, _COPY, _OPEN], answer=segment)
    return _finish(rng, room, [[_COPY, _OPEN, *segment, _CLOSE]], [question], asked)


def _noise(rng: Random, words: list[int], count: int, most: int) -> list[int]:
    """Return `count` words at random, none more than `most` times."""
    seen = [0] * len(words)
    noise = []
    for _ in range(count):
        place = pick(rng, range(len(words)))
        while seen[place] >= most:
            place = (place + 1) % len(words)
        seen[place] += 1
        noise.append(words[place])
    return noise


def frequent(rng: Random, room: int, asked: int) -> Document:
    """Words at random, three of them often; `? often :` is answered by the three, the most frequent first.

    Args:
        rng: source of randomness.
        room: ids of the context, at least 48: with less, other words cannot all be rarer than the three.
        asked: questions wanted; there is one.

    Returns:
        The document.
    """
    chosen = pick_distinct(rng, _CONTENT, _NOISE_WORDS + len(_FREQUENT_SHARES))
    often, noise = chosen[: len(_FREQUENT_SHARES)], chosen[len(_FREQUENT_SHARES) :]
    context: list[int] = []
    for word, share in zip(often, _FREQUENT_SHARES, strict=True):
        context += [word] * max(2, round(share * room))
    context += _noise(rng, noise, room - len(context), context.count(often[-1]) - 1)
    context = pick_distinct(rng, context, room)
    question = Question(ids=[_ASK, _OFTEN, _COLON], answer=often)
    return Document(context=context, is_filler=[False] * room, questions=[question][:asked])
