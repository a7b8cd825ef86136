"""Question answering over given passages, all but one of them distractors (RULER, arXiv 2404.06654, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from random import Random
from typing import Any

from kvcompress.bench.tasks.draft import Draft, finish, grown, hidden
from kvcompress.bench.tasks.passages import Passage, read_passages, town_passages
from kvcompress.bench.tasks.sample import Sample
from kvcompress.bench.testbed.haystack import pick, pick_distinct

_OPENING = "Read the passages below. A question on one of them follows.\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageQuestions:
    """A question on one of many passages.

    Attributes:
        name: name of the task.
        passages: file to take passages from (see :func:`~kvcompress.bench.tasks.passages.read_passages`); its
            distractors come in turns where the context needs more. None: invented towns.
    """

    name: str = "passage_questions"
    passages: Path | None = None

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`."""
        rng = Random(f"passages:{self.name}:{length}:{seed}")
        asked, distractors = self._choose(rng)
        draft = Draft(
            build=hidden(_OPENING, [_text(asked)], distractors, rng, separator="\n\n"),
            questions=[(f"\n\nQuestion: {asked.question}\nAnswer:", asked.answers)],
            max_new_tokens=32,
            metric="string_match_part",
        )
        return finish(self.name, tokenizer, length, seed, draft)

    def _choose(self, rng: Random) -> tuple[Passage, Any]:
        """The passage that is asked about, and the others."""
        if self.passages is None:
            made = town_passages(Random(f"towns:{rng.random()}"))
            return next(made), grown(_text(passage) for passage in made)
        found = read_passages(self.passages)
        asked = found[pick(rng, range(len(found)))]
        # Other questions on the same passage are no distractors.
        others = list(dict.fromkeys(_text(passage) for passage in found if passage.text != asked.text))
        order = pick_distinct(rng, range(len(others)), len(others))
        if not others:
            return asked, lambda units: []
        return asked, grown(chain.from_iterable(repeat([others[place] for place in order])))


def _text(passage: Passage) -> str:
    return f"{passage.title}\n{passage.text}"
