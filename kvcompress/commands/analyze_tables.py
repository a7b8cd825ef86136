"""The tables of ``kvcompress analyze``, ``generation`` and ``samples``. They show what the JSON holds, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from kvcompress.commands.summary import size

MOST_ROWS = 32  # more layers than that are thinned out
_Row = Sequence[object]


def show_report(report: Mapping[str, Any], focus: str | None, console: Console) -> None:
    """Prints a report: facts, layers, the tokens that got most attention, and what the focus asks for."""
    tokens, model = report["tokens"], report["model"]
    console.print(
        f"sample {report['sample']}: {tokens['prompt']} tokens of prompt, {tokens['generated']} generated; "
        f"{model['name']}, {model['layers']} layers, {model['query_heads']} query heads, {model['kv_heads']} kv heads",
        markup=False,
    )
    for line in _compression_lines(report["compression"]):
        console.print(line, markup=False)
    console.print(_layer_table(report))
    attended = report["most_attended_tokens"]
    console.print(_token_table(attended["tokens"], "mass", f"most attended tokens, by {attended['paid_by']}"))
    if focus is not None:
        for table in FOCUSED[focus](report):
            console.print(table)
    for name, value in report["user_metrics"].items():
        console.print(f"{name}: {value}", markup=False)
    for name, error in report["user_metric_errors"].items():
        console.print(f"metric {name!r} failed: {error}", markup=False)


def show_stages(content: Mapping[str, Any], console: Console) -> None:
    """Prints the stages of a sample's generation, one column each."""
    stages = content["stages"]
    rows: list[_Row] = [["events", *(stage["events"] for stage in stages)]]
    for name in stages[0]["metrics"]:
        rows.append([name.replace("_", " "), *(stage["metrics"][name] for stage in stages)])
    title = f"sample {content['sample']}: stages of the generation, mean over queries, heads and layers"
    console.print(_table(title, ["", *(stage["name"] for stage in stages)], rows))


def show_samples(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the samples of a capture, one row each."""
    names = ["sample", "model", "prompt", "generated", "events", "policy", "file"]
    table = [
        [
            row["sample"],
            row["model"],
            row["prompt_tokens"],
            row["generated_tokens"],
            row["events"],
            "none" if row["policy"] is None else row["policy"].get("name", "?"),
            size(row["file_bytes"]),
        ]
        for row in rows
    ]
    console.print(_table("samples", names, table))


def _compression_lines(compression: Mapping[str, Any] | None) -> list[str]:
    if compression is None:
        return ["not compressed"]
    held, full = compression["bytes"]["held"], compression["bytes"]["full"]
    lines = [
        f"policy {compression['policy'].get('name', '?')}: {_share(compression['ratio'])} of the tokens removed; "
        f"{size(held)} held of {size(full)}"
    ]
    for row in compression["information_preserved"]:
        lines.append(
            f"event {row['event']} keeps {_share(row['mass'])} of its attention, {_share(row['entropy'])} of its "
            f"entropy, {_share(row['variance'])} of its variance (from {row['basis']})"
        )
    return lines


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def _layer_table(report: Mapping[str, Any]) -> Group:
    metrics = ("entropy", "focus", "density", "sink_mass", "recent_mass", "diagonal_mass")
    names = ["layer", "entropy", "focus", "density", "sink", "recent", "own"]
    compression = report["compression"]
    if compression is not None:
        names += ["held", "removed"]
    rows = []
    for place in _some(len(report["attention"]["layers"])):
        layer = report["attention"]["layers"][place]
        row = [layer["layer"], *(layer[name] for name in metrics)]
        if compression is not None:
            row += [compression["layers"]["held_per_head"][place], _share(compression["layers"]["ratio"][place])]
        rows.append(row)
    return _table("attention by layer, mean over queries and heads (entropy in nats)", names, rows)


def _focus_layers(report: Mapping[str, Any]) -> list[Group]:
    cache = report["cache"]["layers"]
    coverage = report["attention"]["coverage"]
    names = ["key_norm", "value_norm", "key_dimension_pruning_potential", "value_dimension_pruning_potential"]
    titles = ["layer", "key norm", "value norm", "prunable key dimensions", "prunable value dimensions"]
    places = _some(len(cache["layer"]))
    kv = [[cache["layer"][place], *(cache[name][place] for name in names)] for place in places]
    keys = [[cache["layer"][place], *coverage["layers"][place]] for place in places]
    return [
        _table("keys and values by layer", titles, kv),
        _table(
            "keys that hold a share of the mass", ["layer", *(f"{percent} %" for percent in coverage["percent"])], keys
        ),
    ]


def _focus_heads(report: Mapping[str, Any]) -> list[Group]:
    heads, layers = report["attention"]["heads"], report["attention"]["layers"]
    metrics = ["entropy", "sink_mass", "recent_mass", "maximum"]
    rows = [
        [layers[place]["layer"], head, *(heads[name][place][head] for name in metrics)]
        for place in range(len(layers))
        for head in range(len(heads["entropy"][place]))
    ]
    rows.sort(key=lambda row: (row[2] is None, row[2] or 0.0))
    title = "heads, the most focused first (entropy in nats)" + (
        "" if len(rows) <= MOST_ROWS else f" ({MOST_ROWS} of {len(rows)})"
    )
    cache = report["cache"]["heads"]
    kv_rows = [
        [layers[place]["layer"], head, *(cache[f"{what}_sparsity"][place][head] for what in ("key", "value"))]
        for place in _some(len(layers))
        for head in range(len(cache["key_sparsity"][place]))
    ]
    return [
        _table(title, ["layer", "query head", "entropy", "sink", "recent", "maximum"], rows[:MOST_ROWS]),
        _table("kv heads", ["layer", "kv head", "key sparsity", "value sparsity"], kv_rows[:MOST_ROWS]),
    ]


def _focus_tokens(report: Mapping[str, Any]) -> list[Group]:
    influential = report["influence"]["most_influential_prompt_tokens"]
    tables = [] if influential is None else [_token_table(influential, "influence", "prompt tokens by influence")]
    cross = report["influence"]["cross_mass"]
    tables.append(
        _table(
            "mass between prompt and generated tokens",
            ["from, to", "mass"],
            [[name.replace("_", " "), mass] for name, mass in cross.items()],
        )
    )
    tables.append(_token_table(report["cache"]["tokens"]["key_most_sparse"], "sparsity", "tokens with sparse keys"))
    return tables


def _focus_embeddings(report: Mapping[str, Any]) -> list[Group]:
    embeddings, tables = report["cache"]["embeddings"], []
    for what in ("key", "value"):
        names = ["sparsity", "consistency", "energy_share"]
        columns = [embeddings[f"{what}_{name}"] for name in names]
        order = sorted(range(len(columns[0])), key=lambda place: (-(columns[0][place] or 0), place))[:16]
        rows = [[place, *(column[place] for column in columns)] for place in order]
        tables.append(
            _table(
                f"dimensions of the {what}s, the sparsest first",
                ["dimension", "sparsity", "consistency", "energy share"],
                rows,
            )
        )
    return tables


FOCUSED: Final[dict[str, Callable[[Mapping[str, Any]], list[Group]]]] = {
    "layers": _focus_layers,
    "heads": _focus_heads,
    "tokens": _focus_tokens,
    "embeddings": _focus_embeddings,
}


def _token_table(tokens: Sequence[Mapping[str, Any]], name: str, title: str) -> Group:
    rows = [[row["position"], "" if row["token"] is None else repr(row["token"]), row[name]] for row in tokens]
    return _table(title, ["position", "token", name], rows)


def _some(count: int) -> list[int]:
    """At most :data:`MOST_ROWS` places out of ``count``, evenly spaced, first and last included."""
    if count <= MOST_ROWS:
        return list(range(count))
    return [round(place * (count - 1) / (MOST_ROWS - 1)) for place in range(MOST_ROWS)]


def _table(title: str, names: Sequence[str], rows: Sequence[_Row]) -> Group:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    return Group(Text(title, style="bold"), table)


def _cell(value: object) -> str:
    if value is None:
        return "n/a"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)
