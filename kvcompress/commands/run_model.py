"""The model that a run measures with: the one that it captured with, or one that is loaded when it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcompress.commands.failures import warn
from kvcompress.commands.loading import EMBEDDED, LoadedModel, choose_place, load_model
from kvcompress.commands.recommend_run import check_model

if TYPE_CHECKING:
    from kvcompress.analysis.summary.reader import Sample


class ModelInHand:
    """The model of a sample.

    Args:
        loaded: the model, where it is loaded already.
        sample: the sample.
        name: what was given to ``--model``.
        device: where it runs.
        dtype: of its weights.
    """

    def __init__(
        self, loaded: LoadedModel | None, sample: Sample, *, name: str | None, device: str, dtype: str
    ) -> None:
        self.sample = sample
        self._loaded, self._name, self._device, self._dtype = loaded, name, device, dtype

    @property
    def why_not(self) -> str | None:
        """Why there is none; None where there is."""
        captured = self.sample.summary.model.name
        if self._loaded is None and self._name is None and captured != EMBEDDED:
            return f"it needs the model of the capture ({captured!r}); give --model"
        return None

    def load(self) -> LoadedModel:
        """The model; it is loaded once.

        Raises:
            CommandError: it cannot be loaded, or is another than the sample's.
        """
        if self._loaded is None:
            self._loaded = load_model(self._name, choose_place(self._device, self._dtype))
            for message in self._loaded.warnings:
                warn(message)
            check_model(self._loaded, self.sample)
        return self._loaded
