"""Settings of every test run: nothing is fetched, threads do not compete, and what cannot run says why."""

import importlib.util
import os
import shutil

# Read by the libraries when they are first imported, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # lets CUDA matmuls be deterministic when asked
PARALLEL_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if PARALLEL_WORKER:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # No deadline: a first call compiles or pages in. Derandomized: a failure seen once is seen again.
    settings.register_profile("house", deadline=None, derandomize=True, max_examples=50, print_blob=True)
    settings.load_profile("house")


def pytest_configure(config: pytest.Config) -> None:
    """Give each parallel worker one torch thread: the workers already fill the processors."""
    if PARALLEL_WORKER:
        import torch

        torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.interpreter import hasten

        hasten()


def _reason_without_browser() -> str | None:
    """Return why no browser can be driven here, or None when one can."""
    missing = [] if importlib.util.find_spec("selenium") else ["the package selenium"]
    missing += [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"needs {', '.join(missing)} (Debian: apt-get install chromium chromium-driver)" if missing else None


def _reason_not_to_run(marker: str) -> str | None:
    """Return why tests with `marker` cannot run here, or None when they can."""
    if marker == "gpu":
        import torch

        return None if torch.cuda.is_available() else "needs a CUDA device, and torch sees none"
    if marker == "interpret":
        return None if os.environ.get("TRITON_INTERPRET") == "1" else "needs TRITON_INTERPRET=1 (make test sets it)"
    if marker == "browser":
        return _reason_without_browser()
    raise ValueError(f"marker must be gpu, interpret or browser, got {marker!r}")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with its reason, what this machine cannot run; keep all tests of the GPU in one worker."""
    reasons: dict[str, str | None] = {}
    for item in items:
        for marker in ("gpu", "interpret", "browser"):
            if item.get_closest_marker(marker) is None:
                continue
            if marker not in reasons:
                reasons[marker] = _reason_not_to_run(marker)
            reason = reasons[marker]
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))
            if marker == "gpu":
                item.add_marker(pytest.mark.xdist_group("gpu"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start every test from the same random state, whatever ran before it and in whichever worker."""
    import random
    import sys

    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
