"""The choice between the torch references and the Triton kernels: every reason, and what each choice leads to."""

import inspect
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from kvcompress.kernels import dispatch
from kvcompress.kernels.dispatch import IMPLEMENTATIONS, operation, resolve_backend, tell_once, why_not_triton
from tests.source_tree import ROOT

OPERATIONS = sorted({name for name, _ in IMPLEMENTATIONS})
CUDA = torch.device("cuda", 0)  # only named: no test here puts anything on it
REFUSED = {  # arguments -> what the reason says
    "dtype": ({"dtype": torch.float64}, "float32, float16 and bfloat16, and the model is float64"),
    "head_dim": ({"head_dim": 513}, "at most 512, and the model's have 513"),
    "window": ({"window": 129}, "at most 128 window queries for heads of 64, and window_size is 129"),
    "window of wide heads": (
        {"head_dim": 257, "window": 33},
        "at most 32 window queries for heads of 257, and window_size is 33",
    ),
}


@pytest.fixture(autouse=True)
def triton_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with Triton, outside its interpreter."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("head_dim", "window"), [(8, 1), (64, 32), (256, 128), (512, 32)])
def test_kernels_serve_a_gpu(dtype: torch.dtype, head_dim: int, window: int) -> None:
    sizes = {"dtype": dtype, "head_dim": head_dim, "window": window}
    assert why_not_triton(CUDA, **sizes) is None
    assert resolve_backend("auto", CUDA, **sizes) == "triton"
    assert resolve_backend("triton", "cuda", **sizes) == "triton"


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_kernels_cannot_serve_is_named(case: str, caplog: pytest.LogCaptureFixture) -> None:
    arguments, reason = REFUSED[case]
    tell_once.cache_clear()
    assert reason in str(why_not_triton(CUDA, **arguments))
    for _ in range(2):
        assert resolve_backend("auto", CUDA, **arguments) == "torch"
    assert [reason in message for message in caplog.messages] == [True]  # told, and once
    with pytest.raises(ValueError, match=r"backend='triton' cannot be used.*Use backend='torch'") as caught:
        resolve_backend("triton", CUDA, **arguments)
    assert reason in str(caught.value)


def test_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert why_not_triton(CUDA) == "the package triton is not installed"
    assert resolve_backend("auto", CUDA) == "torch"
    with pytest.raises(ValueError, match=r"triton is not installed.*backend='torch'"):
        resolve_backend("triton", CUDA)


@pytest.mark.parametrize("device", ["cpu", "mps", torch.device("cpu")])
def test_without_a_gpu_torch_runs(device: torch.device | str, caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_backend("auto", device) == "torch"
    assert not caplog.messages
    assert resolve_backend("torch", device) == "torch"
    with pytest.raises(ValueError, match=f"need a GPU, and the model is on '{torch.device(device).type}'"):
        resolve_backend("triton", device)


def test_interpreter_serves_the_cpu_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_backend("triton", "cpu") == "triton"
    assert resolve_backend("auto", "cpu") == "torch", "the interpreter is for tests: nobody gets it unasked"
    with pytest.raises(ValueError, match="float64"):
        resolve_backend("triton", "cpu", dtype=torch.float64)


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), ("", False)])
def test_interpreter_is_known_by_its_variable(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert dispatch.interpreting() is expected


def test_torch_is_always_granted() -> None:
    assert resolve_backend("torch", CUDA, dtype=torch.float64, head_dim=512, window=1000) == "torch"


@pytest.mark.parametrize("name", ["cuda", "Triton", ""])
def test_unknown_backend_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, triton, torch; got"):
        resolve_backend(name, "cpu")


def test_unknown_operation_is_refused() -> None:
    with pytest.raises(
        ValueError, match="no implementation of operation 'attend' for backend 'torch'; known: compact/"
    ):
        operation("attend", "torch")


def test_auto_is_not_an_implementation() -> None:
    with pytest.raises(ValueError, match="for backend 'auto'"):
        operation(OPERATIONS[0], "auto")


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_both_implementations(name: str) -> None:
    assert {backend for each, backend in IMPLEMENTATIONS if each == name} == {"torch", "triton"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_kernel_takes_what_the_reference_takes(name: str) -> None:
    reference, kernel = (inspect.signature(operation(name, backend)) for backend in ("torch", "triton"))
    assert list(kernel.parameters) == list(reference.parameters)
    for parameter in reference.parameters.values():
        other = kernel.parameters[parameter.name]
        assert (other.kind, other.default) == (parameter.kind, parameter.default), parameter.name
        assert other.annotation == parameter.annotation, parameter.name
    assert kernel.return_annotation == reference.return_annotation


def test_implementations_are_imported_once() -> None:
    for name, backend in IMPLEMENTATIONS:
        assert operation(name, backend) is operation(name, backend)


@pytest.mark.skipif(find_spec("triton") is None, reason="shows that an installed Triton is not imported")
def test_operators_import_without_triton() -> None:
    # A process of its own: here Triton may be imported already, by torch or by another test.
    code = """
import sys
sys.modules["triton"] = None  # an import of it fails
from kvcompress.kernels.dispatch import IMPLEMENTATIONS, operation
for name, backend in IMPLEMENTATIONS:
    operation(name, backend)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
