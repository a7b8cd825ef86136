"""A file of what is finished, one JSON object a line, so that an interrupted measurement goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

_Item = TypeVar("_Item")


def read_finished(path: Path, parse: Callable[[Mapping[str, Any]], _Item]) -> Iterator[_Item]:
    """Reads what is finished; a last line that was torn by a stop is cut off the file.

    Args:
        path: the file; its folder is made if it is not there.
        parse: makes an item of a line's content; what it raises means that the line is none.

    Raises:
        ValueError: a line is no trial; the message names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            yield parse(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is no trial ({error}); give a new file with --trials") from error


def append_finished(path: Path, content: Mapping[str, Any]) -> None:
    """Writes one more line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
