"""What tests of the comparison with kvpress share."""

import pytest

from kvcompress.bench.peers.our_side import OurSide
from kvcompress.bench.testbed.location import MODEL_DIR


@pytest.fixture(scope="module")
def our_side() -> OurSide:
    return OurSide(MODEL_DIR)
