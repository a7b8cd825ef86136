"""What else lies in a capture's folder: recommendations, analysis reports, pictures."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from kvcompress.analysis.report.data import plain

RECOMMENDATIONS: Final = "compression_recommendations.json"
MOST_JSON_BYTES: Final = 4 * 2**20
MOST_PICTURE_BYTES: Final = 16 * 2**20  # of all embedded pictures of a page together
MOST_LINKS: Final = 500
_PICTURE_FOLDERS: Final = (".", "plots", "reports/plots", "layers", "heads", "tokens", "embeddings", "tucker")


@dataclass(slots=True, kw_only=True)
class Documents:
    """What the page shows beside the samples.

    Attributes:
        recommendations: the JSON of the recommendations; None where there is none.
        analyses: sample -> the JSON of its analysis.
        pictures: ``{name, href, data}``; ``data`` is base64 of the PNG, or None where it is only linked.
        notes: what could not be shown, and why.
    """

    recommendations: Any = None
    analyses: dict[str, Any] = field(default_factory=dict)
    pictures: list[dict[str, str | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect(folder: Path, samples: list[int], out: Path, *, embed_pictures: bool) -> Documents:
    """Reads what there is; what is missing or damaged is left out, the latter with a note.

    Args:
        folder: the capture's folder.
        samples: samples of the page.
        out: the page, which links start from.
        embed_pictures: whether pictures are part of the page.
    """
    documents = Documents()
    documents.recommendations = _read(folder / RECOMMENDATIONS, documents.notes)
    for sample in samples:
        analysis = _read(folder / "reports" / f"analysis_report_sample_{sample}.json", documents.notes)
        if analysis is not None:
            documents.analyses[str(sample)] = analysis
    room = MOST_PICTURE_BYTES if embed_pictures else 0
    for path in _picture_files(folder, out)[:MOST_LINKS]:
        size = path.stat().st_size
        embedded = path.suffix == ".png" and size <= room
        room -= size if embedded else 0
        documents.pictures.append(
            {
                "name": path.relative_to(folder).as_posix(),
                "href": quote(Path(os.path.relpath(path, out.parent)).as_posix()),
                "data": base64.b64encode(path.read_bytes()).decode("ascii") if embedded else None,
            }
        )
    linked = sum(picture["data"] is None for picture in documents.pictures if str(picture["name"]).endswith(".png"))
    if embed_pictures and linked:
        documents.notes.append(
            f"{linked} pictures are linked, not embedded: together they pass {MOST_PICTURE_BYTES >> 20} MiB."
        )
    return documents


def _read(path: Path, notes: list[str]) -> Any:
    if not path.is_file():
        return None
    if path.stat().st_size > MOST_JSON_BYTES:
        notes.append(f"{path.name} is larger than {MOST_JSON_BYTES >> 20} MiB and not shown.")
        return None
    try:
        return plain(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError, RecursionError):
        notes.append(f"{path.name} is no JSON that can be read, and not shown.")
        return None


def _picture_files(folder: Path, out: Path) -> list[Path]:
    """Pictures and interactive plots below the folder, without links that lead elsewhere and without the page."""
    found = []
    for name in _PICTURE_FOLDERS:
        place = folder / name
        if place.is_dir():
            found += [path for path in place.iterdir() if path.suffix in {".png", ".html"} and path.is_file()]
    inside = folder.resolve()
    return sorted({path for path in found if path != out and path.resolve().is_relative_to(inside)})
