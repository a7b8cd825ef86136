"""kvcompress recommend: measured with the capture's model, or saying that it is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from kvcompress.analysis.capture.recorder import Recorder
from kvcompress.analysis.fidelity.fidelity import fidelity
from kvcompress.analysis.summary.reader import Sample, read_sample
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.bench.testbed.tasks import make_example
from kvcompress.commands.failures import OneLineErrors
from kvcompress.commands.recommend import recommend
from kvcompress.engine.attach import detach
from kvcompress.engine.cache import CompressedCache
from kvcompress.policies.registry import make_policy
from tests.analysis.samples import write_sample

TEXT, JSON = "compression_recommendations.txt", "compression_recommendations.json"
GENERATED = 12

app = typer.Typer(cls=OneLineErrors, add_completion=False, pretty_exceptions_enable=False)
app.command()(recommend)


@app.callback()
def several() -> None:
    """Make `recommend` a command of a group, as in the real program."""


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["recommend", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def embedded_capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Capture a short generation of the embedded model, uncompressed."""
    folder = tmp_path_factory.mktemp("capture")
    model, tokenizer = load_testbed()
    ids = tokenizer(make_example("needle_8", 96).prompt, return_tensors="pt")["input_ids"]
    runner: Any = model
    with Recorder(model, folder, tokenizer=tokenizer, name="embedded"), torch.inference_mode():
        runner.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=GENERATED,
            min_new_tokens=GENERATED,
            do_sample=False,
            pad_token_id=0,
        )
    detach(model)
    return folder


@pytest.fixture
def capture(embedded_capture: Path, tmp_path: Path) -> Path:
    """Copy the capture, so that each test has a folder of its own."""
    folder = tmp_path / "capture"
    shutil.copytree(embedded_capture, folder)
    return folder


def test_every_strategy_is_run_before_one_is_recommended(capture: Path) -> None:
    result = run(capture, "--budgets", "0.75,0.4", "--rounds", 1, "--tolerance", 0.5, "--least-agreement", 0.5)
    assert result.exit_code == 0, result.output
    content = json.loads((capture / JSON).read_text(encoding="utf-8"))
    text = (capture / TEXT).read_text(encoding="utf-8")
    assert content["measured"] is True
    assert content["model"] == {"name": "embedded", "device": "cpu", "dtype": "float32"}
    sample = read_sample(capture)
    prompt = sample.summary.prompt_tokens
    assert (content["prompt_tokens"], content["context"]) == (prompt, prompt)
    assert content["steps"] == sample.token_count - prompt - 1
    assert {strategy["strategy"] for strategy in content["strategies"]} == {"fixed_window", "topk", "policy", "pooling"}
    model = load_testbed()[0]
    window = sample.tensor("token.ids")[None]
    for strategy in content["strategies"]:
        for step in strategy["ladder"]:
            inside = step["kl"] <= 0.5 and step["top1"] >= 0.5
            assert step["within_tolerance"] is inside
            assert f"{step['kl']:.4f}" in text
        if strategy["policy"] == "snapkv":
            parameters = strategy["ladder"][0]["parameters"]
            policy = make_policy("snapkv", **parameters)
            direct = fidelity(model, lambda policy=policy: CompressedCache(model, policy), window, context=prompt)
            assert strategy["ladder"][0]["kl"] == pytest.approx(direct.kl, rel=1e-2, abs=1e-5)
            assert strategy["ladder"][0]["kv_bytes"] == direct.kv_bytes
        assert (strategy["chosen"] is None) == (strategy["speed"] is None)
    chosen = [
        (strategy["ladder"][strategy["chosen"]]["kv_bytes"], strategy["policy"])
        for strategy in content["strategies"]
        if strategy["chosen"] is not None
    ]
    assert chosen  # at this tolerance something can be kept
    recommended = content["recommendation"]
    assert recommended["policy"] in [policy for size, policy in chosen if size == min(chosen)[0]]
    assert f"RECOMMENDED: {recommended['policy']}" in text
    assert text.strip() in result.output


def test_without_the_model_nothing_is_measured_and_both_files_say_so(tmp_path: Path) -> None:
    write_sample(tmp_path, compressed=False)
    result = run(tmp_path, "--output-dir", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / JSON).read_text(encoding="utf-8"))
    assert content["measured"] is False
    assert "run again with --model" in content["why_not_measured"]
    assert content["recommendation"] is None
    text = (tmp_path / "out" / TEXT).read_text(encoding="utf-8")
    assert text.count("NOT MEASURED") == 1
    assert "(not measured)" in text
    printed = json.loads(result.stdout)
    assert printed.pop("written") == [str(tmp_path / "out" / name) for name in (TEXT, JSON)]
    assert printed == content


def test_measuring_can_be_left_out(capture: Path) -> None:
    result = run(capture, "--no-measure")
    assert result.exit_code == 0, result.output
    content = json.loads((capture / JSON).read_text(encoding="utf-8"))
    assert content["why_not_measured"] == "--no-measure was given"


def test_files_are_not_overwritten(capture: Path) -> None:
    assert run(capture, "--no-measure").exit_code == 0
    before = (capture / TEXT).read_bytes()
    again = run(capture, "--no-measure", "--tolerance", 3)
    assert again.exit_code == 2
    assert "is there already" in again.output
    assert (capture / TEXT).read_bytes() == before
    assert run(capture, "--no-measure", "--tolerance", 3, "--force").exit_code == 0
    assert json.loads((capture / JSON).read_text(encoding="utf-8"))["tolerance"]["kl"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sample", "7"], "has no sample 7; it has 0"),
        (["--budgets", "0,0.5"], "those of the prompt KEPT"),
        (["--budgets", "x"], "--budgets must be numbers"),
        (["--tolerance", "-1"], "--tolerance"),
        (["--tolerance", "inf"], "a tolerance has a finite kl of at least 0"),
        (["--least-agreement", "2"], "--least-agreement"),
        (["--no-measure", "--model", "x"], "leave one out"),
        (["--model", "./nowhere"], "there is no './nowhere'"),
        (["--device", "nonsense"], "--device must be"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments: list[str], message: str, capture: Path) -> None:
    result = run(capture, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (capture / TEXT).exists()
    assert not (capture / JSON).exists()


def test_another_model_is_refused(capture: Path, tiny: Path) -> None:
    result = run(capture, "--model", tiny)
    assert result.exit_code == 2
    assert "--model must be the model of the capture ('embedded')" in " ".join(result.output.split())
    assert "query heads 2 and not 4" in result.output


def test_a_capture_without_tokens_is_not_run(capture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Sample.tensor

    def unknown(self: Sample, name: str) -> torch.Tensor:
        tensor = read(self, name)
        return torch.full_like(tensor, -1) if name == "token.ids" else tensor

    monkeypatch.setattr(Sample, "tensor", unknown)
    result = run(capture)
    assert result.exit_code == 2
    assert "does not say which tokens its model saw" in " ".join(result.output.split())
    assert run(capture, "--no-measure").exit_code == 0


def test_a_folder_without_a_capture_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path / "nothing")
    assert result.exit_code == 2
    assert "a capture must be a folder" in result.output
