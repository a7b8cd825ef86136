"""The page: a template, style and script, and the data, as one HTML file that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

PAGE_FOLDER: Final = Path(__file__).parent / "page"
STYLES: Final = ("theme.css", "layout.css", "tokens.css", "views.css")
SCRIPTS: Final = (  # in the order in which they need each other
    *("dom.js", "format.js", "ramps.js", "arrays.js", "sample.js", "state.js"),
    *("legend.js", "cell_grid.js", "charts.js", "sortable_table.js"),
    *("overview.js", "fate.js", "token_text.js", "token_values.js", "token_detail.js", "token_view.js"),
    *(
        "head_grid.js",
        "head_view.js",
        "timeline.js",
        "budgets.js",
        "keys_values.js",
        "table_rows.js",
        "tables.js",
        "json_view.js",
        "recommendations.js",
        "documents.js",
    ),
    *("controls.js", "main.js"),
)
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def render(samples: Sequence[Mapping[str, Any]], documents: Mapping[str, Any], *, title: str) -> str:
    """Returns the page as text.

    Args:
        samples: of :func:`kvcompress.analysis.report.data.sample_data`.
        documents: what the page shows beside them.
        title: of the page.
    """
    style = _joined(STYLES)
    script = _joined(SCRIPTS)
    blocks = [_block("documents", documents), *(_block(f"sample-{sample['index']}", sample) for sample in samples)]
    parts = {
        "policy": html.escape(content_policy(script, style)),
        "title": html.escape(title),
        "style": style,
        "data": "\n".join(blocks),
        "script": script,
    }
    template = (PAGE_FOLDER / "template.html").read_text(encoding="utf-8")
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], template)


def content_policy(script: str, style: str) -> str:
    """The Content-Security-Policy: this script, this style, embedded pictures, and nothing else from anywhere."""
    rules = (
        "default-src 'none'",
        f"script-src '{_digest(script)}'",
        f"style-src '{_digest(style)}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or begin another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 and lone surrogates are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _block(name: str, value: Any) -> str:
    return f'<script type="application/json" id="{name}">{as_json(value)}</script>'


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _joined(names: Sequence[str]) -> str:
    return "\n" + "\n".join((PAGE_FOLDER / name).read_text(encoding="utf-8") for name in names)
