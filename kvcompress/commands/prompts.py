"""Reads the prompt of a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

from kvcompress.commands.failures import CommandError

STDIN = Path("-")
MOST_BYTES = 128 << 20  # some 30 million tokens: longer than any model's text


def read_prompt(text: str | None, file: Path | None) -> str:
    """The prompt that was given as text or as a file.

    Args:
        text: the text itself.
        file: a UTF-8 file, or ``-`` for stdin; one line break at its end, as editors put it, is dropped.

    Raises:
        CommandError: not exactly one of both was given, the file cannot be read, or there is no text in it.
    """
    if (text is None) == (file is None):
        got = "neither" if text is None else "both"
        raise CommandError(f"give exactly one of --prompt TEXT and --prompt-file FILE (- for stdin); got {got}")
    if file is None:
        return _checked(text or "", "--prompt")
    name = "--prompt-file " + ("- (stdin)" if file == STDIN else repr(str(file)))
    return _checked(_decoded(_bytes_of(file, name), name), name)


def _bytes_of(file: Path, name: str) -> bytes:
    if file == STDIN:
        return _limited(sys.stdin.buffer, name)
    try:
        with file.open("rb") as opened:
            return _limited(opened, name)
    except FileNotFoundError:
        raise CommandError(f"{name} must be a file; there is none. Check the path.") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CommandError(f"{name} must be a file that can be read; got: {reason}") from None


def _limited(stream: BinaryIO, name: str) -> bytes:
    data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise CommandError(f"{name} must hold at most {MOST_BYTES >> 20} MiB; it holds more. Give a shorter text.")
    return data


def _decoded(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{name} must be UTF-8 text; got the byte 0x{data[error.start]:02x} at offset {error.start}. "
            "Convert it (e.g. with iconv), or give a text file."
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def _checked(text: str, name: str) -> str:
    if not text.strip():
        raise CommandError(f"{name} must hold some text; got {'nothing' if not text else 'only white space'}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # bytes of the command line that are no UTF-8
        raise CommandError(f"{name} must be UTF-8 text; got other bytes. Check the terminal's encoding.") from None
    return text
