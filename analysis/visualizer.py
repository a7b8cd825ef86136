"""Pictures of a capture: :class:`AttentionVisualizer`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kvcompress.analysis.plots.heatmaps import attention_heatmap
from kvcompress.analysis.plots.interactive import interactive_attention
from kvcompress.analysis.plots.jobs import Job, Request, check_request, not_drawn, result_jobs, sample_jobs
from kvcompress.analysis.plots.problems import NothingToDrawError
from kvcompress.analysis.plots.registry import UserPlotWarning
from kvcompress.analysis.plots.saving import refuse_existing, save_html, save_png
from kvcompress.analysis.plots.surface import surface
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.reader import Sample, list_samples, read_sample


class WrittenPlots(list[Path]):
    """The files that were written, in order.

    Attributes:
        left_out: what was not drawn, by name, and why.
    """

    def __init__(self, paths: Iterable[Path] = (), left_out: dict[str, str] | None = None) -> None:
        super().__init__(paths)
        self.left_out = {} if left_out is None else left_out


class AttentionVisualizer:
    """Draws the samples of a capture.

    Layers are numbered as in the model, steps are the events of the capture from 0, and a head of None is the mean over
    query heads.

    Args:
        folder: the capture's; results of `kvcompress tucker`, `similarity` and `prune` in it are drawn too.
        output_dir: where pictures go; None: into the capture's folder.

    Raises:
        SummaryError: the folder holds no complete sample.
    """

    def __init__(self, folder: str | Path, output_dir: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.output_dir = self.folder if output_dir is None else Path(output_dir)
        self._sample: Sample | None = None

    @property
    def sample(self) -> Sample:
        """The sample loaded last; the first one of the folder where none was."""
        return self.load_attention_data() if self._sample is None else self._sample

    def load_attention_data(self, sample_idx: int | None = None) -> Sample:
        """Opens a sample, which the ``plot_*`` methods then draw.

        Args:
            sample_idx: its number; None: the first one of the folder.

        Raises:
            SummaryError: there is no such sample, or its files are damaged.
        """
        index = self._first() if sample_idx is None else sample_idx
        self._sample = read_sample(self.folder, index)
        return self._sample

    def plot_attention_heatmap(self, layer_idx: int, step_idx: int = 0, head_idx: int | None = None) -> Figure:
        """What one step attends to; see :func:`kvcompress.analysis.plots.heatmaps.attention_heatmap`.

        Raises:
            ValueError: there is no such layer, step or head.
        """
        return attention_heatmap(self.sample, layer_idx, step_idx, head_idx)

    def plot_3d_attention(self, layer_idx: int, step_idx: int = 0, head_idx: int | None = None) -> Any:
        """A plotly surface; see :func:`kvcompress.analysis.plots.surface.surface`.

        Raises:
            ValueError: there is no such layer, step or head.
        """
        return surface(self.sample, layer_idx, step_idx, head_idx)

    def create_interactive_attention_plot(self, layer_idx: int, step_idx: int = 0) -> Any:
        """A plotly map with controls; see :func:`kvcompress.analysis.plots.interactive.interactive_attention`.

        Raises:
            ValueError: there is no such layer or step.
        """
        return interactive_attention(self.sample, layer_idx, step_idx)

    def generate_comprehensive_report(self, sample_idx: int | None = None, *, force: bool = False) -> WrittenPlots:
        """Draws everything that a sample has data for.

        Args:
            sample_idx: number of the sample; None: the first one of the folder.
            force: overwrite pictures that are there.

        Returns:
            The files written; its ``left_out`` tells what was not drawn, and why.

        Raises:
            SummaryError: there is no such sample, or its files are damaged.
            FileExistsError: a picture is there already, and ``force`` is not given.
            OSError: a file cannot be written.
        """
        return self.draw(Request(), sample_idx, force=force)

    def draw(
        self,
        request: Request,
        sample_idx: int | None = None,
        *,
        force: bool = False,
        advance: Callable[[int, int], object] | None = None,
    ) -> WrittenPlots:
        """Draws what a request asks for.

        Args:
            request: which pictures.
            sample_idx: as in :meth:`generate_comprehensive_report`.
            force: likewise.
            advance: is told the files done, and the files in all, after each.

        Raises:
            ValueError: an unknown picture, layer, step or head; else as :meth:`generate_comprehensive_report`.
        """
        jobs, left_out = self._jobs(request, sample_idx)
        if not force:
            refuse_existing(job.path for job in jobs)
        written = WrittenPlots(left_out=left_out)
        for done, job in enumerate(jobs, 1):
            _carry_out(job, written)
            if advance is not None:
                advance(done, len(jobs))
        return written

    def planned_files(self, request: Request, sample_idx: int | None = None) -> list[Path]:
        """The files that :meth:`draw` would write, as far as the sample has data for them.

        Raises:
            ValueError: as :meth:`draw`.
        """
        return [job.path for job in self._jobs(request, sample_idx)[0]]

    def _jobs(self, request: Request, sample_idx: int | None) -> tuple[list[Job], dict[str, str]]:
        sample = self.load_attention_data(sample_idx)
        if not sample.events:
            raise SummaryError(f"sample {sample.index} of {self.folder} must have at least one event; it has none")
        check_request(sample, request)
        left_out = not_drawn(sample, request) if request.names is None else {}
        jobs = list(sample_jobs(sample, request, self.output_dir))
        if request.names is not None or sample.index == self._first():  # results are of the model, not of a sample
            jobs += result_jobs(self.folder, request, self.output_dir, left_out)
        return jobs, left_out

    def _first(self) -> int:
        return next(iter(list_samples(self.folder)), 0)


def _carry_out(job: Job, written: WrittenPlots) -> None:
    try:
        figure = _users_figure(job) if job.users else job.draw()
    except NothingToDrawError as reason:
        written.left_out[job.name] = str(reason)
        return
    save = save_html if job.path.suffix == ".html" else save_png
    written.append(save(figure, job.path))


def _users_figure(job: Job) -> Figure:
    """The figure of a user's own plot; one that fails does not keep the others from being drawn.

    Raises:
        NothingToDrawError: it failed.
    """
    try:
        figure = job.draw()
        if not isinstance(figure, Figure):
            raise TypeError(f"it must return a matplotlib Figure; got {type(figure).__name__}")
        return figure
    except NothingToDrawError:
        raise
    except Exception as error:  # code of the user's: it may raise anything, and its name must be told
        message = f"plot {job.name!r} failed: {type(error).__name__}: {error}"
        warnings.warn(message, UserPlotWarning, stacklevel=4)
        raise NothingToDrawError(message) from error
