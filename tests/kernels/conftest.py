"""Every interpreted test of the kernels runs their programs in a random order and watches what they touch."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def programs_keep_apart(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test whose launches hold a race between programs, or touch memory that is not theirs."""
    if request.node.get_closest_marker("interpret") is None:
        yield
        return
    from tests.kernels.watched_programs import shuffled, watched

    with watched(shuffled(seed=0)) as watch:
        yield
    assert not watch.problems, watch.problems
