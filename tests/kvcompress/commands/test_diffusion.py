"""`kvcompress diffusion`: what the commands write and tell, and what they refuse in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import BertConfig, BertForMaskedLM
from typer.testing import CliRunner, Result

from kvcompress.analysis.summary.reader import read_sample
from kvcompress.bench.workloads.diffusion_lm.architecture import build_model, save_model
from kvcompress.bench.workloads.diffusion_lm.history import FILE_NAME, read_history
from kvcompress.bench.workloads.diffusion_lm.pictures import PICTURES
from kvcompress.bench.workloads.diffusion_lm.tables import diffusion_caching, diffusion_training
from kvcompress.bench.workloads.diffusion_lm.tokenizer import build_tokenizer
from kvcompress.commands.diffusion import diffusion
from kvcompress.commands.failures import OneLineErrors

PROMPT = "add 4 7 1 plus 8 9 0 equals"
SHORT = ("--gen-length", 8, "--steps", 4, "--block-length", 4)


def invoke(*arguments: object) -> Result:
    app = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)
    app.add_typer(diffusion, name="diffusion")
    result: Result = CliRunner().invoke(app, ["diffusion", *map(str, arguments)])
    return result


def run(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def run_json(*arguments: object) -> dict[str, Any]:
    lines = run(*arguments, "--json").stdout.splitlines()
    assert len(lines) == 1
    content: dict[str, Any] = json.loads(lines[0])
    return content


def refuse(*arguments: object) -> str:
    """The one line that a refused command line gets."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("kvcompress: error: ")
    return lines[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's architecture with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    save_model(build_model(0), folder)
    return folder


def generate(tiny: Path, *arguments: object) -> tuple[object, ...]:
    return ("generate", "--model", tiny, "--prompt", PROMPT, *SHORT, *arguments)


def test_generate_fills_what_was_asked_for(tiny: Path) -> None:
    content = run_json(*generate(tiny))
    assert len(content["text"].split()) == 8
    assert "<mask>" not in content["text"]
    assert content["prompt_tokens"] == 9
    assert content["tokens_computed"] == content["tokens_without_cache"] == 4 * 17
    assert run_json(*generate(tiny))["text"] == content["text"]


def test_generate_with_a_cache_computes_less(tiny: Path) -> None:
    content = run_json(*generate(tiny, "--cache", "--keep", 0.5))
    assert content["tokens_computed"] == 2 * (17 + 4)
    assert content["cache"]["kept_tokens"] == round(0.5 * 13)
    assert content["cache"]["held_bytes"] < content["cache"]["full_bytes"]
    plain = run_json(*generate(tiny, "--temperature", 2.0, "--seed", 3))
    refreshed = run_json(*generate(tiny, "--temperature", 2.0, "--seed", 3, "--cache", "--refresh-every", 1))
    assert plain["text"] == refreshed["text"]


def test_generate_reads_a_bert(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    recorded = ("--visualize-attention", "--save-history", "--output-dir", tmp_path / "out")
    assert run_json(*generate(tmp_path, *recorded))["text"] == run_json(*generate(tmp_path))["text"]
    assert read_history(tmp_path / "out").steps == 4


def test_recording_and_analysis(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recorded = ("--visualize-attention", "--save-history", "--max-layers", 2, "--output-dir", out)
    content = run_json(*generate(tiny, *recorded))
    assert content["text"] == run_json(*generate(tiny))["text"]
    assert {Path(path).name for path in content["written"]} == {
        FILE_NAME,
        "report.html",
        *(f"{n}.png" for n in PICTURES),
    }
    sample = read_sample(out)
    assert sample.events == 4
    assert sample.summary.prompt_tokens == 9
    assert sample.tensor("event.block").tolist() == [0, 0, 1, 1]
    assert list(read_history(out).maps) == ["layer_0", "layer_3"]
    assert "add" in (out / "report.html").read_text(encoding="utf-8")
    assert "already" in refuse(*generate(tiny, *recorded))

    analysis = run_json("analyze", out, "--max-tokens", 12)
    assert (analysis["tokens"], analysis["prompt_length"], analysis["steps"]) == (12, 6, 4)
    assert all(Path(path).is_file() for path in analysis["written"])
    assert "already" in refuse("analyze", out)
    told = run("analyze", out, "--verbose", "--prompt-length", 5, "--max-layers", 1, "--force").output
    assert "layer_0" in told
    assert "5 of the prompt" in told
    assert "layer_3" not in told


def test_analysis_of_a_history_without_a_capture(tiny: Path, tmp_path: Path) -> None:
    run(*generate(tiny, "--save-history", "--output-dir", tmp_path / "out"))
    written = run_json("analyze", tmp_path / "out", "--output-dir", tmp_path / "other")["written"]
    assert "report.html" not in {Path(path).name for path in written}
    assert all(str(tmp_path / "other") in path for path in written)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gen-length", 10, "--steps", 4, "--block-length", 4), "gen_length must be a multiple of block_length=4"),
        (("--gen-length", 8, "--steps", 5, "--block-length", 4), "steps must be a multiple of the number of blocks, 2"),
        (("--gen-length", 8, "--steps", 16, "--block-length", 4), "steps must be at most gen_length=8"),
        (("--gen-length", 1024, "--steps", 4, "--block-length", 256), "must fit into the model's 512 positions"),
        (("--prompt", "add <mask> plus 4 equals"), "masks must lie in the generated part only, got 1"),
        (("--prompt", "add seven plus 4 equals"), "token 2 of 5 is not in it"),
        (("--keep", 0.5), "give --cache"),
        (("--cache", "--keep", 0), r"keep must be in (0, 1]"),
        (("--cache", "--save-history", "--output-dir", "x"), "Leave --cache out"),
        (("--save-history",), "give --output-dir"),
        (("--output-dir", "x"), "--output-dir is for recordings"),
        (("--max-layers", 1), "--max-layers is for recordings"),
    ],
)
def test_generate_refuses_in_one_line(tiny: Path, arguments: tuple[object, ...], message: str) -> None:
    assert message in refuse(*generate(tiny, *arguments))


def test_models_without_a_mask_or_of_another_kind_are_refused(tiny: Path, tmp_path: Path) -> None:
    build_model(0).save_pretrained(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    assert "has none" in refuse(*generate(tmp_path))
    from kvcompress.bench.testbed.location import MODEL_DIR

    assert "must be a masked language model" in refuse(*generate(MODEL_DIR))
    assert "cannot be loaded" in refuse(*generate(tmp_path / "nothing"))


def test_a_vocabulary_that_is_too_small_is_refused(tiny: Path, tmp_path: Path) -> None:
    model = build_model(0)
    model.resize_token_embeddings(9)  # so that the tokenizer's higher digits lie outside
    save_model(model, tmp_path)
    assert "ids of the model's vocabulary, [0, 9)" in refuse(*generate(tmp_path))


def test_analyze_refuses_in_one_line(tiny: Path, tmp_path: Path) -> None:
    assert "--save-history" in refuse("analyze", tmp_path)
    run(*generate(tiny, "--save-history", "--output-dir", tmp_path / "out"))
    assert "prompt_length must be in [1, 17)" in refuse("analyze", tmp_path / "out", "--prompt-length", 17)


def test_train_evaluate_and_their_tables(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("train", "--output-dir", folder, "--steps", 2)
    assert "already" in refuse("train", "--output-dir", folder, "--steps", 2)
    results = tmp_path / "results"
    options = ("--model", folder / "model", "--sums", 2, "--steps", "8", "--rounds", 1, "--output-dir", results)
    content = run_json("evaluate", *options)
    assert content["cases"][0]["cache"] == "uncached"
    assert content["cases"][0]["tokens_as_uncached"] == 1.0
    written = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in results.iterdir()}
    assert written["diffusion_caching.json"] == content
    assert diffusion_caching(content).count("\n| 8 |") == len(content["cases"])
    assert "| 2 |" in diffusion_training(written["diffusion_training.json"])
    assert "already" in refuse("evaluate", *options)


def test_train_and_evaluate_refuse_in_one_line(tmp_path: Path) -> None:
    assert "has none" in refuse("train", "--output-dir", tmp_path, "--resume")
    assert "has no model.safetensors" in refuse("evaluate", "--model", tmp_path)
    assert "whole numbers" in refuse("evaluate", "--steps", "x")
    assert "steps must be a multiple of the number of blocks, 8" in refuse("evaluate", "--steps", "7")


def test_a_training_that_runs_out_of_time_can_be_resumed(tmp_path: Path) -> None:
    first = invoke("train", "--output-dir", tmp_path, "--steps", 2, "--minutes", 0)
    assert first.exit_code == 3
    assert "--resume" in first.stderr
    run("train", "--output-dir", tmp_path, "--steps", 2, "--resume")


def test_the_demo_adds_with_every_sampler() -> None:
    content = run_json("demo", "--examples", 1, "--seed", 3)
    samplers = {row["sampler"]: row for row in content["samplers"]}
    assert samplers["uncached"]["digits_right"] >= 0.98
    assert samplers["cached"]["tokens_computed"] < samplers["uncached"]["tokens_computed"] / 4
    assert samplers["cached, 25 % kept"]["held_bytes"] < 0.3 * samplers["cached"]["held_bytes"]


def test_the_embedded_model_adds_a_sum_of_its_own() -> None:
    content = run_json("generate", "--steps", 8, "--cache")
    assert content["right"] is not None
    assert content["prompt_tokens"] == 131
    assert "--gen-length must be 64" in refuse("generate", "--gen-length", 32, "--steps", 8)
    assert "give exactly one of --prompt" in refuse("generate", "--prompt", "add", "--prompt-file", "x")
