"""kvcompress ad: the shipped agent learns in its context, is analysed and trained; what cannot be used is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from kvcompress.analysis.summary.reader import read_sample
from kvcompress.bench.workloads.algorithm_distillation.location import MODEL_DIR, load_agent
from kvcompress.commands import ad_demo
from kvcompress.commands.ad import ad
from kvcompress.commands.failures import OneLineErrors

app = typer.Typer(cls=OneLineErrors, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(ad, name="ad")

ADAPTER = '''
import torch
from torch import nn
from torch.nn import functional as F
from kvcompress.bench.workloads.algorithm_distillation.adapter import ForeignModel


class Plain(nn.Module):
    """A user's model: one token per step, plain attention."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.head = nn.Linear(3, 16), nn.Linear(16, 48), nn.Linear(16, 5)

    def forward(self, steps):
        hidden = self.embed(steps)
        for _ in range(2):
            query, key, value = self.qkv(hidden).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            hidden = hidden + attended.transpose(1, 2).flatten(2)
        return self.head(hidden)


def load():
    model = Plain()

    def act(cells, actions, rewards, cell):
        now = torch.stack((cell, torch.full_like(cell, -1), torch.full_like(cell, -1)), dim=-1)[:, None]
        steps = torch.cat((torch.stack((cells, actions, rewards), dim=-1), now), dim=1)
        return model(steps.float() / 10)[:, -1]

    return ForeignModel(model=model, act=act, most_steps=100)


def wrong():
    return 3
'''


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["ad", *(str(argument) for argument in arguments)])


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_shipped_agent_is_small_and_learns_in_its_context() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 8_000_000
    assert load_agent().dtype.is_floating_point
    result = run("evaluate", "--episodes", 8, "--sets", 1, "--strategies", "topk", "--ratios", "0.2", "--json")
    assert result.exit_code == 0, result.output
    full, reread, topk = json.loads(result.stdout)["cases"]
    curve = full["return_by_episode"]
    assert sum(curve[-2:]) > 3 * sum(curve[:2])
    assert reread["return_by_episode"] == curve
    assert full["final_tokens"] == 2 + 3 * (8 * 20 - 1)
    assert topk["final_tokens"] < full["final_tokens"]
    assert topk["late_return"] > 0.7 * full["late_return"]


def test_analysis_writes_what_it_names(tmp_path: Path) -> None:
    options = ("--episodes", 3, "--strategies", "pooling", "--ratios", "0.1", "--output-dir", tmp_path)
    result = run("analyze", *options)
    assert result.exit_code == 0, result.output
    for name in (
        "attention_analysis_comprehensive",
        "layer_head_analysis",
        "attention_heatmap_step0",
        "learning_curve",
    ):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    with Image.open(tmp_path / "episode.gif") as animation:
        assert getattr(animation, "n_frames", 1) >= 15
    text = (tmp_path / "compression_recommendations.txt").read_text(encoding="utf-8")
    assert "Attention pattern: " in text
    assert "pooling 10 %" in text
    assert "RECOMMENDED: " in text
    sample = read_sample(tmp_path, 0)
    assert sample.events == 6
    assert sample.token_count == 2 + 3 * (3 * 20 - 1)
    assert sample.summary.tokens is not None
    assert sample.summary.tokens[:2] == ("<bos>", "cell33")
    assert "is there already; give --force" in refused(run("analyze", *options))


def test_a_users_own_model_is_analysed_through_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_darkroom_agent.py").write_text(ADAPTER, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    result = run(
        "analyze", "--adapter", "my_darkroom_agent:load", "--episodes", 3, "--ratios", "0.1", "--output-dir", out
    )
    assert result.exit_code == 0, result.output
    sample = read_sample(out, 0)
    assert (sample.events, sample.summary.model.layers, sample.summary.model.query_heads) == (3, 2, 2)
    assert sample.token_count == 60  # one token per step
    assert (out / "attention_analysis_comprehensive.png").is_file()
    assert "fixed_window 10 %" in (out / "compression_recommendations.txt").read_text(encoding="utf-8")
    assert "returned a int" in refused(
        run("analyze", "--adapter", "my_darkroom_agent:wrong", "--output-dir", out / "b")
    )
    long = run("analyze", "--adapter", "my_darkroom_agent:load", "--episodes", 9, "--output-dir", out / "c")
    assert "must fit the model's 100 steps, got 101" in refused(long)


def test_training_stops_resumes_and_gives_an_agent(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("train", "--output-dir", out, "--steps", 2, "--minutes", 0).exit_code == 3
    assert "give --resume to go on" in refused(run("train", "--output-dir", out, "--steps", 2))
    result = run("train", "--output-dir", out, "--steps", 2, "--resume")
    assert result.exit_code == 0, result.output
    assert load_agent(out / "model").config.vocab_size == load_agent().config.vocab_size
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["kind"] for line in log] == ["check"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--strategies", "magic"), "strategy must be one of reread, full, fixed_window"),
        (("--strategies", "snapkv"), "'snapkv' compresses prompts only"),
        (("--strategies", ","), "--strategies must name at least one"),
        (("--ratios", "0"), "must lie in (0, 1], got 0.0"),
        (("--ratios", "1.2"), "must lie in (0, 1], got 1.2"),
        (("--ratios", "half"), "--ratios must be numbers"),
        (("--episodes", "21"), "must fit the model's 1201 positions, got 1260 tokens; play at most 20 episodes"),
        (("--model", "nowhere"), "must hold config.json and model.safetensors, got nowhere"),
        (("--interval", "0"), "Invalid value for '--interval'"),
    ],
)
def test_what_cannot_be_evaluated_is_said(options: tuple[str, str], message: str) -> None:
    assert message in refused(run("evaluate", *options))


def test_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    assert "vocabulary must be the 58 words" in refused(run("evaluate", "--model", tmp_path / "other"))


def test_output_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "must be a folder that can be written" in refused(run("analyze", "--output-dir", tmp_path / "file" / "a"))
    assert "must be a folder that can be written" in refused(run("train", "--output-dir", tmp_path / "file" / "a"))
    assert "--out must be a file in a folder that is there" in refused(run("evaluate", "--out", tmp_path / "no" / "o"))


@pytest.mark.parametrize("name", ["no-colon", "my_missing_module:load", "json:nothing"])
def test_adapters_that_cannot_be_imported_are_named(tmp_path: Path, name: str) -> None:
    assert f"{name!r}" in refused(run("analyze", "--adapter", name, "--output-dir", tmp_path / "x"))


def test_demo_tells_the_whole_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ad_demo, "_EPISODES", 6)
    result = run("demo")
    assert result.exit_code == 0, result.output
    for part in ("return per episode", "cells reached with a reward", "topk 30 %", "pooling 30 %", "h2o 30 %"):
        assert part in result.stdout
