"""The survey of transformers' decoders: what it calls working, refused, wrong and not built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from kvcompress import CakeCache, CompressedCache, Full
from kvcompress.bench.model_support import probe as probe_module
from kvcompress.bench.model_support.probe import NEW_TOKENS, Probe, probe
from kvcompress.bench.model_support.survey import SCHEMA, main
from kvcompress.bench.model_support.tables import models_not_built, models_refused, models_that_work
from kvcompress.bench.model_support.tiny import LAYERS, NotBuilt, model_types, tiny_model


def run(*arguments: str) -> Result:
    """Runs the command."""
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(arguments))


def test_every_decoder_of_transformers_is_known() -> None:
    kinds = model_types()
    assert len(kinds) > 200
    assert kinds["llama"] is False
    assert kinds["llava"] is True


@pytest.mark.parametrize("model_type", ["llama", "gemma4_text", "falcon_h1"])
def test_a_decoder_that_is_compressed_works(model_type: str) -> None:
    found = probe(model_type, seeing=False)
    assert found.outcome == "works"
    assert found.difference is not None
    assert found.difference < 1e-4
    assert (found.layers, found.compressed) == (LAYERS, 1 if model_type == "gemma4_text" else LAYERS)


def test_what_the_engine_refuses_is_refused_with_its_words() -> None:
    found = probe("deepseek_v3", seeing=False)
    assert found.outcome == "refused"
    assert str(found.reason).startswith("layer 0 was updated but never attended")


def test_what_cannot_be_made_tiny_is_told_with_all_reasons() -> None:
    with pytest.raises(NotBuilt, match="xlnet"):
        tiny_model("xlnet", seeing=False)
    assert probe("xlnet", seeing=False).outcome == "not built"


def test_a_tiny_model_is_the_same_each_time() -> None:
    first, second = (tiny_model("llama", seeing=False).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


class Forgetful(CakeCache):
    """Gives wrong logits without any eviction."""

    def update(self, key_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return super().update(key_states * 0.5, *args, **kwargs)


def _raises(model: Any, cache_size: int) -> CompressedCache:
    raise IndexError("index 120 is out of bounds")


WRONG = {
    "other logits": (Forgetful, "logits differ without eviction"),
    "nothing goes": (lambda model, cache_size: CompressedCache(model, Full()), "nothing was evicted"),
    "another error": (_raises, "IndexError: index 120 is out of bounds"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_neither_right_nor_refused_is_wrong(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, reason = WRONG[case]
    monkeypatch.setattr(probe_module, "CakeCache", make)
    found = probe("llama", seeing=False)
    assert (found.outcome, found.reason) == ("wrong", reason)


def test_the_command_writes_what_the_tables_read(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    result = run("--only", "llama,bert,xlnet", "--out", str(out))
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["schema"] == SCHEMA
    assert found["new_tokens"] == NEW_TOKENS
    assert [case["outcome"] for case in found["cases"]] == ["works", "refused", "not built"]
    assert "**1 of 3 kinds work.**" in models_that_work(found)
    assert "Wrong without an error that says so: none." in models_that_work(found)
    assert "Decoders (1): `llama`." in models_that_work(found)
    assert "| compression supports causal attention only, and a layer attends in both directions | `bert` |" in (
        models_refused(found)
    )
    assert models_not_built(found) == "`xlnet`.\n"


def test_a_wrong_one_is_an_exit_code_and_an_unknown_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Probe(model_type="llama", seeing=False, outcome="wrong", reason="of its own")
    monkeypatch.setattr("kvcompress.bench.model_support.survey.probe", lambda name, seeing: wrong)
    result = run("--only", "llama", "--out", str(tmp_path / "found.json"))
    assert result.exit_code == 1
    assert "1 wrong" in result.output
    result = run("--only", "lama")
    assert result.exit_code == 2
    assert "transformers knows no decoder lama" in result.output
