"""What ``kvcompress demo`` tells, for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from kvcompress.commands.loading import LoadedModel
from kvcompress.commands.summary import describe_policy, size

if TYPE_CHECKING:
    from kvcompress.bench.testbed.tasks import Example
    from kvcompress.commands.demonstration import Contender

SCHEMA = "kvcompress.demo/1"
SHOWN = 0  # which example is shown: always the first, whoever answers it right


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo found.

    Attributes:
        loaded: the model.
        contenders: the caches, the full one first.
        examples: what was asked, in order.
        seed: which set of examples it is.
        seconds: time that asking took, loading excluded.
    """

    loaded: LoadedModel
    contenders: list[Contender]
    examples: list[Example]
    seed: int
    seconds: float

    def asked(self, task: str) -> int:
        """How many examples of a task were asked."""
        return sum(example.task == task for example in self.examples)

    def saved(self, contender: Contender) -> float:
        """Fraction of the full cache's bytes that a contender does not hold."""
        return 1 - contender.mean_bytes / self.contenders[0].mean_bytes


def as_json(result: DemoResult) -> dict[str, Any]:
    """The result as what ``--json`` prints."""
    model, example = result.loaded.model, result.examples[SHOWN]
    return {
        "schema": SCHEMA,
        "model": result.loaded.name,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "prompt_tokens": example.length,
        "seed": result.seed,
        "seconds": result.seconds,
        "rows": [_row_json(result, contender) for contender in result.contenders],
        "example": {
            "task": example.task,
            "question": _question(example),
            "right_answer": example.answer,
            "answers": [
                {
                    "policy": contender.name,
                    "cache_size": contender.cache_size,
                    "text": contender.answers[SHOWN],
                }
                for contender in result.contenders
            ],
        },
    }


def _answer_json(contender: Contender) -> dict[str, Any]:
    text = contender.answers[SHOWN]
    return {"policy": contender.name, "cache_size": contender.cache_size, "text": text}


def _row_json(result: DemoResult, contender: Contender) -> dict[str, Any]:
    policy = contender.policy
    return {
        "policy": contender.name,
        "cache_size": contender.cache_size,
        "parameters": None if policy is None else asdict(policy),
        "tasks": {
            task: {"correct": correct, "asked": result.asked(task)} for task, correct in contender.correct.items()
        },
        "kv_bytes": round(contender.mean_bytes),
        "saved_fraction": result.saved(contender),
        "decode_tokens_per_s": contender.tokens_per_second,
    }


def show(result: DemoResult, console: Console) -> None:
    """Prints the result for people."""
    from kvcompress.bench.testbed.tasks import TASKS

    length, tasks = result.examples[0].length, list(result.contenders[0].correct)
    console.print(
        f"{len(result.examples)} questions on texts of {length} tokens, asked of the embedded model "
        f"on {result.loaded.model.device}:",
        markup=False,
    )
    for task in tasks:
        console.print(f"  {task}: {TASKS[task].description}", markup=False)
    console.print()
    console.print(_table(result, tasks))
    console.print()
    for policy in {row.name: row.policy for row in result.contenders if row.policy is not None}.values():
        console.print(describe_policy(policy), markup=False, style="dim")
    note = "The question of variables_2 names only the first link of a chain: the others are easier to lose."
    if "variables_2" in tasks:
        console.print(note, style="dim", markup=False)
    took = f"Bytes and speed are means over the questions. Took {result.seconds:.1f} s.\n"
    console.print(took, style="dim", markup=False)
    _show_example(result, console)


def _table(result: DemoResult, tasks: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("cache", no_wrap=True)
    for heading in ("kept", *tasks, "KV bytes", "saved", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for contender in result.contenders:
        speed = contender.tokens_per_second
        kept = "all" if contender.cache_size is None else str(contender.cache_size)
        right = [f"{contender.correct[task]} of {result.asked(task)}" for task in tasks]
        table.add_row(
            contender.name,
            kept,
            *right,
            size(round(contender.mean_bytes)),
            f"{result.saved(contender):.1%}",
            "-" if speed is None else f"{speed:.0f}",
            end_section=contender.cache_size in (None, _largest(result)),
        )
    return table


def _largest(result: DemoResult) -> int:
    return max(contender.cache_size or 0 for contender in result.contenders)


def _show_example(result: DemoResult, console: Console) -> None:
    example = result.examples[SHOWN]
    console.print(f"The first question: {_question(example)}", markup=False)
    table = Table.grid(padding=(0, 2))
    table.add_row("right answer", "", example.answer)
    for contender in result.contenders:
        kept = "all" if contender.cache_size is None else str(contender.cache_size)
        table.add_row(contender.name, kept, contender.answers[SHOWN])
    console.print(table, markup=False)


def _question(example: Example) -> str:
    from kvcompress.bench.testbed.vocabulary import ids_text

    return ids_text(example.question_ids)
