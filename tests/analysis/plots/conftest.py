"""Samples to draw, and everything that a figure says."""

import pytest

from kvcompress.analysis.capture.raw import RawRequest
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.summary.reader import Sample
from tests.analysis.samples import write_sample

PROMPT, GENERATED = 100, 6  # more tokens than bins, and no multiple of them


@pytest.fixture(scope="session")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A compressed sample of three layers, four query heads and two kv heads."""
    return write_sample(tmp_path_factory.mktemp("compressed"), prompt=PROMPT, generated=GENERATED)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """The same without compression."""
    return write_sample(tmp_path_factory.mktemp("full"), prompt=PROMPT, generated=GENERATED, compressed=False)


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A short sample with the raw attention of layer 1."""
    settings = RecorderSettings(raw=RawRequest(layers=(1,)))
    return write_sample(tmp_path_factory.mktemp("raw"), prompt=12, generated=2, settings=settings)


@pytest.fixture(scope="session")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """One token, one layer, one head, one step, no compression."""
    return write_sample(
        tmp_path_factory.mktemp("smallest"),
        layers=1,
        query_heads=1,
        kv_heads=1,
        head_dim=1,
        prompt=1,
        generated=0,
        compressed=False,
    )
