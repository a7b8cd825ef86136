"""What is wrong with the files of a capture."""

from __future__ import annotations


class SummaryError(ValueError):
    """A capture's files cannot be used. The message names the file, the rule, what was found, and the way out."""
