"""The texts that the analysis commands run on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvcompress.commands.failures import CommandError
from kvcompress.commands.prompts import read_prompt

_TITLE: Final = re.compile(r"^ = [^=\n].*? = $", re.MULTILINE)  # a heading of the first level, in WikiText's own form
_TASKS: Final = ("needle_8", "variables_2", "multi_value")  # of the embedded model, which knows no English
_TASK_TOKENS: Final = 512

_ENGLISH: Final = """\
The lighthouse at the end of the long grey pier was built in 1871 by Ada Morrow, an engineer who had never seen the sea
before she was thirty. Its lamp burned rape oil, then paraffin, and since 1926 a single electric bulb of a thousand
watts, which a lens of ground glass throws nineteen miles. The keeper's log was kept in ink until the last keeper left.

On the ninth of March 1904 the log says: wind north-west, strong; two ships seen, one of them the Halcyon, under sail;
the code of the harbour master's safe is 4417, in case he forgets it again. The entry for the next day mentions neither
the wind nor the safe. It says that a seal came up the stairs, looked at the lamp for a while, and went down again.

Visitors ask three things: how the lens was carried up the stairs, why the door faces the land, and whether anyone was
ever lonely there. The lens came in forty pieces, each in a basket of straw. The door faces the land because the sea
took the first one. As for the third question, the log has 12,045 entries, and the word does not occur in any of them.

Question: what is the code of the harbour master's safe?
Answer:"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChoice:
    """Which texts a command runs on, as its options say.

    Attributes:
        prompt: the text itself.
        prompt_file: a file with the text; with ``use_wikitext`` a file in WikiText's form.
        use_wikitext: articles of WikiText-2, from the hub where no file is given.
        wikitext_index: the first of them.
        max_samples: most texts.
    """

    prompt: str | None = None
    prompt_file: Path | None = None
    use_wikitext: bool = False
    wikitext_index: int = 0
    max_samples: int = 1

    def texts(self, tokenizer: Any, *, embedded: bool) -> list[str]:
        """The texts, at least one.

        Args:
            tokenizer: of the model; the built-in texts of the embedded model are made with it.
            embedded: whether the model is the embedded one.

        Raises:
            CommandError: the options contradict each other, or a text cannot be had.
        """
        if self.max_samples < 1:
            raise CommandError(f"--max-samples must be at least 1, got {self.max_samples}")
        if self.use_wikitext:
            return self._articles()
        if self.wikitext_index:
            raise CommandError("--wikitext-index needs --use-wikitext; give both or neither")
        if self.prompt is not None or self.prompt_file is not None:
            return [read_prompt(self.prompt, self.prompt_file)]
        return _task_prompts(tokenizer)[: self.max_samples] if embedded else [_ENGLISH]

    def _articles(self) -> list[str]:
        if self.prompt is not None:
            raise CommandError("give one of --prompt and --use-wikitext, not both")
        articles = split_articles(self._wikitext())
        first = self.wikitext_index
        if not 0 <= first < len(articles):
            raise CommandError(f"--wikitext-index must be between 0 and {len(articles) - 1}, got {first}")
        return articles[first : first + self.max_samples]

    def _wikitext(self) -> str:
        from kvcompress.bench.data_source import WIKITEXT, read_text

        if self.prompt_file is not None:
            return read_prompt(None, self.prompt_file)
        try:
            return read_text(WIKITEXT)
        except (ImportError, ValueError) as error:
            raise CommandError(f"{error} Or give a file in WikiText's form with --prompt-file.") from error


def choose_text(
    prompt: str | None,
    prompt_file: Path | None,
    use_wikitext: bool,
    wikitext_index: int,
    tokenizer: Any,
    *,
    embedded: bool,
) -> str:
    """The one text that a command runs on; see :class:`TextChoice`."""
    choice = TextChoice(
        prompt=prompt, prompt_file=prompt_file, use_wikitext=use_wikitext, wikitext_index=wikitext_index
    )
    return choice.texts(tokenizer, embedded=embedded)[0]


def split_articles(text: str) -> list[str]:
    """Articles of a text in WikiText's form, each from its title on; a text without titles is one article."""
    starts = [match.start() for match in _TITLE.finditer(text)]
    if not starts:
        return [text]
    return [text[begin:end].strip() for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _task_prompts(tokenizer: Any) -> list[str]:
    """Prompts in the language of the embedded model: facts in filler, and a question."""
    from kvcompress.bench.tasks.registry import make_task

    samples = [make_task(name).sample(tokenizer, _TASK_TOKENS, 0) for name in _TASKS]
    ids = [[*sample.context_ids, *sample.turns[0].question_ids] for sample in samples]
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
