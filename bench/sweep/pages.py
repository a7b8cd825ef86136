"""The report of a sweep: tables and pictures, once as Markdown and once as HTML, with the same content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kvcompress.analysis.files import replace_text
from kvcompress.bench.sweep.drawing import MODE_TITLES
from kvcompress.bench.sweep.estimates import Estimate, mean_of, score_of
from kvcompress.bench.sweep.grid import unique
from kvcompress.bench.sweep.pictures import draw_all
from kvcompress.bench.sweep.rendering import (
    Block,
    Heading,
    Mark,
    Paragraph,
    Picture,
    Table,
    Value,
    as_html,
    as_markdown,
)
from kvcompress.bench.sweep.summary import Entry, Place, Summary, leaders

_ALTS: Mapping[str, str] = {
    "quality_over_bytes": "Mean score over the bytes held, with 95 % intervals",
    "quality_over_speed": "Mean score over decode speed, with 95 % intervals",
    "policies_by_task": "Score of every policy on every task",
    "tokens_by_layer": "Tokens that each layer holds",
}


def write_report(summary: Summary, folder: Path) -> Iterator[Path]:
    """Writes ``report.md``, its pictures, and ``report.html``.

    Args:
        summary: the rows.
        folder: where to; made if it is not there.

    Yields:
        Each file, once it is written.
    """
    pictures = []
    for path in draw_all(summary, folder):
        pictures.append(path)
        yield path
    title = f"Sweep of {summary.rows[0].cell.model}"
    blocks = [Heading(level=1, text=title), *_blocks(summary, pictures)]
    for name, text in (("report.md", as_markdown(blocks)), ("report.html", as_html(title, blocks))):
        replace_text(folder / name, text)
        yield folder / name


def _blocks(summary: Summary, pictures: Sequence[Path]) -> Iterator[Block]:
    yield Paragraph(text=_origin(summary))
    shown = {label: text for label, text in summary.texts.items() if label != text}
    if shown:
        yield Paragraph(
            text="Policies: " + "; ".join(f"{label} is {text}" for label, text in sorted(shown.items())) + "."
        )
    yield Paragraph(
        text="Scores in % with 95 % intervals. Within a budget, the best is marked: bold where it beats every other "
        "policy (the interval of the difference, sample by sample, lies above zero), ≈ for those that cannot be told "
        "from the best. Bytes are those that the cache really held after the last answer."
    )
    for path in pictures[:2]:
        yield _picture(path)
    for mode in summary.modes:
        yield Heading(level=2, text=MODE_TITLES[mode].capitalize())
        for length in unique(sorted(place.length for place in summary.places[mode])):
            yield Heading(level=3, text=f"{length} tokens")
            yield _scores(summary, mode, [place for place in summary.places[mode] if place.length == length])
        yield Heading(level=3, text="Fidelity, speed and memory")
        yield Paragraph(text="Means over all tasks and lengths; KL and top-1 against the full cache; one sequence.")
        yield _costs(summary.of_mode(mode))
        yield from (_picture(path) for path in pictures if path.stem == f"policies_by_task_{mode}")
    yield Heading(level=2, text="Where the tokens are")
    yield _picture(pictures[-1])


def _picture(path: Path) -> Picture:
    return Picture(path=path, alt=next(alt for name, alt in _ALTS.items() if path.stem.startswith(name)))


def _origin(summary: Summary) -> str:
    rows = summary.rows
    cell = rows[0].cell
    commits = unique(
        [f"{row.commit[:7] if row.commit else 'unknown'}{' with changes' if row.dirty else ''}" for row in rows]
    )
    places = unique([row.accelerator or row.cpu for row in rows])
    versions = unique([", ".join(f"{name} {v}" for name, v in row.versions.items() if v) for row in rows])
    samples = "/".join(map(str, sorted({row.cell.n for row in rows})))
    seeds = ", ".join(map(str, sorted({row.cell.seed for row in rows})))
    days = sorted({row.time_utc[:10] for row in rows})
    return (
        f"Model {cell.model} (digest {cell.model_digest}), {cell.dtype} on {' and '.join(places)}; {len(rows)} cells "
        f"of {samples} samples, seed {seeds}; commit {' and '.join(commits)}, {' and '.join(versions)}, "
        f"{days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}."
    )


def _scores(summary: Summary, mode: str, places: Sequence[Place]) -> Table:
    """A line per policy and budget, a column per task, then the mean and the bytes."""
    tasks = unique([place.task for place in places])
    columns = [[place for place in places if place.task == task] for task in tasks]
    wholes = [*columns, list(places)] if len(tasks) > 1 else columns
    entries = [entry for entry in summary.of_mode(mode) if set(entry.rows) & set(places)]
    rows = []
    for entry in entries:
        values = [_score(entry, column, _mark(entry, entries, column)) for column in wholes]
        held = [entry.rows[place].kv_bytes for place in places if place in entry.rows]
        bytes_held = Value(text=_size(sum(held) / len(held)))
        rows.append([Value(text=str(entry.budget)), Value(text=entry.policy), *values, bytes_held])
    header = ["budget", "policy", *tasks, *(["mean"] if len(tasks) > 1 else []), "held"]
    return Table(header=header, rows=rows, texts=2)


def _score(entry: Entry, places: Sequence[Place], mark: Mark) -> Value:
    if not all(place in entry.rows for place in places):
        return Value(text="-")  # not finished: a mean of some would be set beside means of all
    return Value(text=_percent(mean_of([score_of(entry.rows[place]) for place in places])), mark=mark)


def _mark(entry: Entry, entries: Sequence[Entry], places: Sequence[Place]) -> Mark:
    rivals = [
        one
        for one in entries
        if one.budget == entry.budget and not one.is_full and all(place in one.rows for place in places)
    ]
    if entry not in rivals or len(rivals) < 2:
        return ""
    level, alone = leaders(rivals, places)
    return "" if entry.policy not in level else "best" if alone else "level"


def _costs(entries: Sequence[Entry]) -> Table:
    header = ["budget", "policy", "held", "% of full", "KL, nats", "top-1, %", "tokens/s", "first token, ms", "peak"]
    rows = []
    for entry in entries:
        speed = entry.tokens_per_second
        texts = [
            str(entry.budget),
            entry.policy + ("" if entry.whole else " (not finished)"),
            _size(entry.mean("kv_bytes")),
            f"{100 * entry.share:.1f}",
            f"{entry.mean('kl'):.3g}",
            f"{100 * entry.mean('top1'):.1f}",
            f"{speed.mean:.1f} [{speed.low:.1f}, {speed.high:.1f}]",
            f"{1000 * entry.mean('ttft'):.1f}",
            _size(entry.mean("peak_bytes")),
        ]
        rows.append([Value(text=text) for text in texts])
    return Table(header=header, rows=rows, texts=2)


def _percent(score: Estimate) -> str:
    return f"{100 * score.mean:.1f} [{100 * score.low:.0f}, {100 * score.high:.0f}]"


def _size(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 2**10:.0f} KiB"
