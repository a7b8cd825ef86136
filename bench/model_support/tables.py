"""The survey of transformers' decoders as Markdown."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from kvcompress.bench.table_format import Run, markdown, origin


def models_that_work(run: Run) -> str:
    """One paragraph of those that see text alone, one of those that also see images."""
    found = [case for case in run["cases"] if case["outcome"] == "works"]
    texts = [case["model_type"] for case in found if not case["seeing"]]
    seeing = [case["model_type"] for case in found if case["seeing"]]
    wrong = [case["model_type"] for case in run["cases"] if case["outcome"] == "wrong"]
    worst = max(case["difference"] for case in found)
    return (
        f"**{len(found)} of {len(run['cases'])} kinds work.** Largest difference of a logit: {worst:.0e}. "
        f"Wrong without an error that says so: {_names(wrong) or 'none'}.\n\n"
        f"Decoders ({len(texts)}): {_names(texts)}.\n\n"
        f"Decoders that also see images, tried with text ({len(seeing)}): {_names(seeing)}.\n{origin(run)}"
    )


def models_refused(run: Run) -> str:
    """What the error says, and for which models."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for case in run["cases"]:
        if case["outcome"] == "refused":
            reasons[kind_of_reason(case)].append(case["model_type"])
    rows = [[reason, _names(names)] for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1]))]
    return markdown(["what the error says", "models"], rows, texts=2)


def models_not_built(run: Run) -> str:
    """Those of which no tiny model could be made to run."""
    return f"{_names([case['model_type'] for case in run['cases'] if case['outcome'] == 'not built'])}.\n"


def kind_of_reason(case: dict[str, Any]) -> str:
    """The first sentence of a reason, without the names and numbers of one model."""
    reason = str(case["reason"]).partition(". ")[0]
    reason = re.sub(rf"\b{re.escape(str(case['model_class']))}\b", "the model", reason)
    reason = re.sub(r"\blayer \d+", "a layer", reason)
    return re.sub(r" \(num_kv_shared_layers=\d+\)| of shape \([\d, ]+\),| \(\w+Config\)| of type <.*>", "", reason)


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
