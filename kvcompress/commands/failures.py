"""The one place where errors become a line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from kvcompress.errors import CompressionError

BAD_INPUT = 2  # exit code, as of every other wrong use of a command line
OUT_OF_MEMORY = 1
TRACEBACK_VARIABLE = "KVCOMPRESS_TRACEBACK"


class CommandError(Exception):
    """What the user gave cannot be used. The message names the rule, what was got, and the way out."""


class OneLineErrors(TyperGroup):
    """A group of commands that says what is wrong in one line, without frames and tracebacks."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Runs a command line; see :meth:`typer.core.TyperGroup.main`."""
        parse_and_run: Any = super().main
        if not kwargs.pop("standalone_mode", True):
            return parse_and_run(*args, standalone_mode=False, **kwargs)
        # Without standalone mode typer returns an Exit's code (130 after Ctrl-C), else the command's value.
        try:
            status = parse_and_run(*args, standalone_mode=False, **kwargs)
        except Exception as error:
            status = report(error)
        sys.exit(status if isinstance(status, int) else 0)


def report(error: Exception) -> int:
    """Prints an error of the user's making as one line on stderr.

    Args:
        error: what a command raised.

    Returns:
        The exit code.

    Raises:
        Exception: ``error`` itself, where it is a fault of the program.
    """
    message, code = _describe(error)
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    typer.echo("kvcompress: error: " + one_line(message), err=True)
    return code


def warn(message: str) -> None:
    """Prints a warning as one line on stderr."""
    typer.echo("kvcompress: warning: " + one_line(message), err=True)


def one_line(text: object) -> str:
    """A text with its line breaks and runs of spaces made single spaces."""
    return " ".join(str(text).split())


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, with its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _describe(error: Exception) -> tuple[str, int]:
    if hasattr(error, "format_message"):  # wrong use of the command line, as typer found it
        context = getattr(error, "ctx", None)
        hint = f" See `{context.command_path} --help`." if context is not None else ""
        return error.format_message().rstrip(".") + "." + hint, getattr(error, "exit_code", BAD_INPUT)
    if isinstance(error, CommandError | CompressionError):
        return str(error), BAD_INPUT
    if isinstance(error, ValueError | TypeError):
        return str(error) if _is_ours(error) else _foreign(error), BAD_INPUT
    if isinstance(error, OSError):
        return _of_the_system(error), BAD_INPUT
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        advice = "Give a shorter prompt, a smaller --dtype, or leave --compare-full out."
        return f"the device's memory is too small for this run ({first_line(error)}). {advice}", OUT_OF_MEMORY
    raise error


def _is_ours(error: Exception) -> bool:
    """Whether this package raised the error itself: its messages are complete."""
    frames = error.__traceback__
    if frames is None:
        return True
    while frames.tb_next is not None:
        frames = frames.tb_next
    return str(frames.tb_frame.f_globals.get("__name__", "")).startswith("kvcompress.")


def _of_the_system(error: OSError) -> str:
    """What the system says of a file; an error raised by this package has its whole message already."""
    if error.strerror is None:
        return str(error) if _is_ours(error) else _foreign(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _foreign(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)} (set {TRACEBACK_VARIABLE}=1 to see where)"
