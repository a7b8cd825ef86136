"""What ``kvcompress run`` studies with the model itself, on the tokens of a sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvcompress.commands import recommend_run, similarity_run, tucker_run
from kvcompress.commands.loading import LoadedModel
from kvcompress.commands.result_files import write_json, write_text
from kvcompress.commands.studies import Study, layers_of

if TYPE_CHECKING:
    from kvcompress.analysis.summary.reader import Sample

_TUCKER_TOKENS: Final = 256  # as the command's own default
_SIMILARITY_TOKENS: Final = 512
_LEAST_TOKENS: Final = 8
_STEPS: Final = 32
_SHOWN_TOKENS: Final = 128
_THRESHOLDS: Final = (0.9, 0.95, 0.99)
_KEPT: Final = (0.75, 0.5, 0.375, 0.25, 0.125, 0.0625)
_ROUNDS: Final = 5


def study_of(loaded: LoadedModel, sample: Sample, tokens: int, steps: int) -> Study:
    """The first tokens of a sample, and predictions after them.

    Args:
        loaded: the sample's model.
        sample: the sample.
        tokens: most tokens that are studied.
        steps: predictions after them; none where the sample is too short for both.
    """
    ids = sample.tensor("token.ids")
    if len(ids) < _LEAST_TOKENS + steps + 1:
        steps = 0
    after = steps + 1 if steps else 0
    context = min(tokens, len(ids) - after)
    return Study(loaded=loaded, ids=ids[: context + after], context=context, steps=steps)


def write_tucker(loaded: LoadedModel, sample: Sample, folder: Path, *, sensitivity: bool) -> Path:
    """Writes ``tucker.json`` of a sample.

    Args:
        loaded: the sample's model.
        sample: the sample.
        folder: where to.
        sensitivity: whether to measure what each layer's low rank does to the next token.
    """
    study = study_of(loaded, sample, _TUCKER_TOKENS, _STEPS if sensitivity else 0)
    request = tucker_run.Request(
        sequence_length=study.context,
        embedding_rank=None,
        token_rank=None,
        head_rank=None,
        layers=None,
        sensitivity=study.steps > 0,
        steps=study.steps,
        output_dir=folder,
        force=True,
        plots=False,
        as_json=False,
    )
    path = folder / tucker_run.FILE
    write_json(path, tucker_run.tucker_results(study, layers_of(study, None), request))
    return path


def write_similarity(loaded: LoadedModel, sample: Sample, folder: Path) -> Path:
    """Writes ``similarity.json`` of a sample.

    Args:
        loaded: the sample's model.
        sample: the sample.
        folder: where to.
    """
    study = study_of(loaded, sample, _SIMILARITY_TOKENS, 0)
    path = folder / similarity_run.FILE
    content = similarity_run.similarity_results(study, layers_of(study, None), _SHOWN_TOKENS, _THRESHOLDS)
    write_json(path, content)
    return path


def write_recommendations(model: Callable[[], LoadedModel] | str, sample: Sample, folder: Path) -> list[Path]:
    """Writes ``compression_recommendations.txt`` and ``.json``.

    Args:
        model: loads the sample's model; or why nothing is measured.
        sample: the sample.
        folder: where to.
    """
    from kvcompress.analysis.recommend.measuring import Tolerance
    from kvcompress.analysis.recommend.readable import readable

    tolerance = Tolerance(kl=0.1, top1=0.9)
    found = recommend_run.find_recommendations(sample, model, _KEPT, tolerance, rounds=_ROUNDS)
    text, data = (folder / name for name in recommend_run.FILES)
    write_text(text, readable(found))
    write_json(data, found.to_json())
    return [text, data]
