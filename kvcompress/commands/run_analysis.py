"""What ``kvcompress run`` does with a capture, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvcompress.commands import run_studies
from kvcompress.commands.counting import counting
from kvcompress.commands.result_files import write_json
from kvcompress.commands.run_focus import Focus, sections_of
from kvcompress.commands.run_model import ModelInHand
from kvcompress.commands.run_outputs import RECOMMENDATIONS
from kvcompress.commands.run_stages import Stages
from kvcompress.commands.summary import size
from kvcompress.errors import CompressionError

if TYPE_CHECKING:
    from kvcompress.analysis.plots.jobs import Request as Pictures

_STUDIES = ("tucker", "similarity")


class Analysis:
    """The analysis of a folder's samples.

    Args:
        folder: the capture's; everything is written into it.
        samples: numbers of the samples.
        stages: told of each stage.
        focus: what to restrict it to, with its name; None: nothing.
        focus_name: its name.
        force: whether files that are there are overwritten, and results that are there made anew.

    Attributes:
        written: the files, in order.
        left_out: what could not be made, and why.
    """

    def __init__(
        self,
        folder: Path,
        samples: Sequence[int],
        stages: Stages,
        *,
        focus: Focus | None,
        focus_name: str | None,
        force: bool,
    ) -> None:
        self.folder, self.samples, self.stages = folder, list(samples), stages
        self.focus, self.focus_name, self.force = focus, focus_name, force
        self.written: list[Path] = []
        self.left_out: dict[str, str] = {}

    @property
    def page(self) -> Path:
        """The report that shows everything."""
        from kvcompress.analysis.report.write import FILE_NAME

        return self.folder / FILE_NAME

    def planned(self, *, recommend: bool) -> list[Path]:
        """The files that :meth:`run` would write, but for results, which are used where they are there."""
        from kvcompress.analysis.metrics.capture_analysis import CaptureAnalysis
        from kvcompress.analysis.visualizer import AttentionVisualizer

        analysis, visualizer = CaptureAnalysis(self.folder), AttentionVisualizer(self.folder)
        files = [analysis.report_path(index) for index in self.samples]
        for index in self.samples:
            files += visualizer.planned_files(self._pictures(), index)
        return [*files, *(self.folder / name for name in RECOMMENDATIONS if recommend), self.page]

    def run(self, model: ModelInHand, *, low_rank: bool, recommend: bool) -> None:
        """Runs the stages.

        Args:
            model: what is measured with.
            low_rank: whether the model's cache is decomposed and compared.
            recommend: whether strategies are tried.

        Raises:
            ValueError: a sample that cannot be analysed.
            OSError: a file cannot be written.
        """
        studies = self._studies() if low_rank else []
        if (studies or recommend) and model.why_not is None:
            model.load()  # a wrong one is found out before anything is written
        self._metrics()
        for study in studies:
            self._study(study, model)
        if recommend:
            self._recommend(model)
        self._plots()
        self._report()

    def _metrics(self) -> None:
        from kvcompress.analysis.analyzer import AttentionAnalyzer
        from kvcompress.analysis.metrics.capture_analysis import CaptureAnalysis, analysis_report
        from kvcompress.analysis.summary.reader import read_sample

        with self.stages.stage("metrics") as told:
            analyzer, paths = AttentionAnalyzer(self.folder), CaptureAnalysis(self.folder)
            for index in self.samples:
                path = paths.report_path(index)
                if self.focus_name is None:
                    analyzer.generate_analysis_report(index)
                else:
                    report = analysis_report(read_sample(self.folder, index))
                    write_json(path, sections_of(report, self.focus_name))
                self.written.append(path)
                told.append(str(path))

    def _studies(self) -> list[str]:
        """The studies to make; results that are there are drawn as they are, unless files are overwritten."""
        wanted = [name for name in _STUDIES if self.focus is None or name in self.focus.studies]
        return [name for name in wanted if self.force or not (self.folder / f"{name}.json").exists()]

    def _study(self, name: str, model: ModelInHand) -> None:
        if model.why_not is not None:
            self.left_out[name] = model.why_not
            return
        with self.stages.stage(name) as told:
            told.append(self._attempt(name, lambda: [self._make_study(name, model)]))

    def _make_study(self, name: str, model: ModelInHand) -> Path:
        if name == "similarity":
            return run_studies.write_similarity(model.load(), model.sample, self.folder)
        sensitivity = self.focus is None or "layer_sensitivity" in self.focus.pictures
        return run_studies.write_tucker(model.load(), model.sample, self.folder, sensitivity=sensitivity)

    def _recommend(self, model: ModelInHand) -> None:
        with self.stages.stage("recommend") as told:
            source = model.why_not or model.load
            told.append(
                self._attempt("recommend", lambda: run_studies.write_recommendations(source, model.sample, self.folder))
            )

    def _attempt(self, name: str, make: Callable[[], list[Path]]) -> str:
        """Makes files of what not every model and not every text allows; the reason is told where they cannot be."""
        try:
            made = make()
        except (CompressionError, ValueError) as error:
            self.left_out[name] = str(error)
            return "left out"
        self.written += made
        return ", ".join(map(str, made))

    def _plots(self) -> None:
        from kvcompress.analysis.visualizer import AttentionVisualizer

        with self.stages.stage("plots") as told:
            visualizer, before = AttentionVisualizer(self.folder), len(self.written)
            planned = {index: visualizer.planned_files(self._pictures(), index) for index in self.samples}
            with counting("drawing", sum(map(len, planned.values()))) as advance:
                for index in self.samples:
                    drawn = visualizer.draw(self._pictures(), index, force=self.force, advance=lambda *_: advance())
                    self.written += drawn
                    prefix = "" if len(self.samples) == 1 else f"sample {index}: "
                    self.left_out |= {
                        prefix + name: reason for name, reason in drawn.left_out.items() if not self._unwanted(name)
                    }
            told.append(f"{len(self.written) - before} files")

    def _unwanted(self, name: str) -> bool:
        """Whether a picture needs results that are not there, and whose absence has been told or was asked for."""
        from kvcompress.analysis.plots.result_views import RESULT_VIEWS

        view = RESULT_VIEWS.get(name)
        return view is not None and not (self.folder / f"{view.results}.json").exists()

    def _report(self) -> None:
        from kvcompress.analysis.report.write import write_report

        with self.stages.stage("report") as told:
            page = write_report(self.folder, samples=self.samples, force=self.force)
            self.written.append(page)
            told += [str(page), size(page.stat().st_size)]

    def _pictures(self) -> Pictures:
        from kvcompress.analysis.plots.jobs import Request as Pictures

        return Pictures(names=None if self.focus is None else self.focus.pictures)
