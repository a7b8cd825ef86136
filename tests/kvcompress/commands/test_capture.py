"""`kvcompress capture`: what is written, what is told, what is cut, and what an interruption leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from kvcompress.analysis.capture.sample_capture import SampleCapture
from kvcompress.analysis.summary import writer
from kvcompress.analysis.summary.reader import list_samples, read_sample
from kvcompress.cli import app
from kvcompress.commands import capture_work
from kvcompress.commands.capture_request import policy_choice
from kvcompress.commands.failures import CommandError
from kvcompress.commands.loading import Place, load_model
from kvcompress.commands.model_names import HUB_IDS
from kvcompress.presets import PRESETS, preset
from tests.kvcompress.commands.test_bad_input import refuse
from tests.source_tree import ROOT

PROMPT_TOKENS, POSITIONS = 128, 256  # as in conftest.py
NEW = 6
POLICY = ("--compress", "--cache-size", 40, "--window-size", 8)


def run(*arguments: object) -> Result:
    result: Result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def run_json(*arguments: object) -> dict[str, Any]:
    lines = run(*arguments, "--json").stdout.splitlines()
    assert len(lines) == 1
    loaded: dict[str, Any] = json.loads(lines[0])
    return loaded


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "captured"


@pytest.fixture
def basic(tiny: Path, prompt_file: Path, out: Path) -> tuple[object, ...]:
    options = ("--max-new-tokens", NEW, "--device", "cpu", "--output-dir", out)
    return ("capture", "--model", tiny, "--prompt-file", prompt_file, *options)


@pytest.fixture
def articles(tmp_path: Path) -> Path:
    """Three articles in WikiText's form."""
    path = tmp_path / "articles.txt"
    text = " = {} = \n\n the old man walks near the house . the captain looks across the sea .\n"
    path.write_text("".join(text.format(name) for name in ("One", "Two", "Three")), encoding="utf-8")
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*")) if folder.is_dir() else []


class TestWhatIsWritten:
    def test_the_full_cache_unless_told_otherwise(self, basic: tuple[object, ...], tiny: Path, out: Path) -> None:
        told = run_json(*basic)
        assert files(out) == ["attention_data_sample_0.safetensors", "attention_summary_sample_0.json"]
        sample = read_sample(out)
        assert not sample.compressed
        assert (told["model"], sample.summary.model.name) == (tiny.name, tiny.name)  # not where it lies
        # the last token generated is not fed back
        assert (sample.summary.prompt_tokens, sample.token_count) == (PROMPT_TOKENS, PROMPT_TOKENS + NEW - 1)
        assert sample.kinds.tolist() == [0] + [1] * (NEW - 1)
        (row,) = told["samples"]
        assert row["policy"] is None
        assert (row["prompt_tokens"], row["tokens"], row["events"]) == (PROMPT_TOKENS, sample.token_count, NEW)
        assert row["kv_bytes"] == sample.token_count * 2 * 2 * 16 * 4  # two layers, one head, 16 dimensions, float32
        assert row["file_bytes"] == (out / row["files"][0]).stat().st_size
        assert row["text"].startswith(sample.summary.generated_text or "nothing")
        assert told["schema"] == "kvcompress.captured/1"
        assert told["older_samples"] == []

    def test_compressed(self, basic: tuple[object, ...], out: Path) -> None:
        told = run_json(*basic, *POLICY, "--tau1", 0.5)
        sample = read_sample(out)
        assert sample.summary.policy == told["samples"][0]["policy"]
        assert {
            "name": "cake",
            "cache_size": 40,
            "window_size": 8,
            "tau1": 0.5,
        }.items() <= sample.summary.policy.items()
        held = sample.held(sample.events - 1).sum(-1).float()
        assert held.mean() == 40

    def test_the_capture_does_not_change_what_is_generated(self, basic: tuple[object, ...]) -> None:
        captured = run_json(*basic, *POLICY)["samples"][0]
        model, text, *_ = basic[2], basic[4]
        arguments = ("--max-new-tokens", NEW, "--device", "cpu", *POLICY[1:])
        generated = run_json("generate", "--model", model, "--prompt-file", text, *arguments)
        assert captured["text"] == generated["text"]
        assert captured["kv_bytes"] == generated["kv_bytes"]["held"]

    def test_each_article_is_a_sample(self, tiny: Path, articles: Path, out: Path) -> None:
        arguments = ("--use-wikitext", "--prompt-file", articles, "--wikitext-index", 1, "--max-samples", 5)
        told = run_json("capture", "--model", tiny, "--output-dir", out, *arguments, "--max-new-tokens", 2)
        assert list_samples(out) == [0, 1]
        for row, title in zip(told["samples"], ("Two", "Three"), strict=True):
            assert row["warnings"] == []
            assert row["sample"] == ("Two", "Three").index(title)

    def test_raw_attention_and_its_size_first(self, basic: tuple[object, ...], out: Path) -> None:
        raw = ("--save-attention", "--save-layers", "1", "--save-heads", "0-1", "--save-kv")
        result = run(*basic, *raw)
        sample = read_sample(out)
        stored = [name for name in sample.names if name.startswith("raw.attention.")]
        assert sorted(stored) == [f"raw.attention.{event}.1" for event in range(NEW)]
        prompt = sample.raw_attention(0, 1)
        assert prompt.shape == (2, PROMPT_TOKENS, PROMPT_TOKENS)
        torch.testing.assert_close(prompt.sum(-1), torch.ones(2, PROMPT_TOKENS))
        steps = sum(PROMPT_TOKENS + step for step in range(1, NEW))
        exact = 4 * 2 * (PROMPT_TOKENS**2 + steps)
        assert sum(4 * sample.tensor(name).numel() for name in stored) == exact
        assert f"at most {exact / 1024:.2f} KiB" in result.stderr
        assert sample.has("raw.keys.0")
        assert sample.has("raw.values.1")

    def test_raw_attention_beyond_its_limit_is_said(self, basic: tuple[object, ...], out: Path) -> None:
        result = run(*basic, "--save-attention", "--save-max-tokens", PROMPT_TOKENS - 1)
        assert "store no raw attention" in result.stderr
        assert read_sample(out).summary.raw_left_out == tuple(range(NEW))

    def test_more_raw_attention_than_the_disk_holds(
        self, basic: tuple[object, ...], out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
        refuse(*basic, "--save-attention", words=("raw attention", "1000 B free"))
        assert not out.exists()

    def test_built_in_texts_and_the_table(self, out: Path) -> None:
        result = run("capture", "--output_dir", out, "--max_samples=2", "--max_new_tokens", 3, *POLICY)
        assert list_samples(out) == [0, 1]
        for words in ("embedded on cpu, float32; cake (cache_size=40", "on disk", "events", "written: "):
            assert words in result.stdout
        assert result.stderr == ""

    def test_text_is_data(self, tiny: Path, out: Path) -> None:
        text = "<script>alert(1)</script> [bold]é 漢字 🐙[/bold]"
        run("capture", "--model", tiny, "--prompt", text, "--output-dir", out, "--max-new-tokens", 2)
        told = json.loads(run("samples", out, "--json").stdout)
        assert told["samples"][0]["prompt_tokens"] == read_sample(out).summary.prompt_tokens


class TestLength:
    def test_cut_to_max_length(self, basic: tuple[object, ...], out: Path) -> None:
        result = run(*basic, "--max-length", 50)
        assert f"the prompt of {PROMPT_TOKENS} tokens is cut to its first 50 tokens (--max-length)" in result.stderr
        whole = read_sample(out).tensor("token.ids")
        assert read_sample(out).summary.prompt_tokens == 50
        run(*basic, "--force")
        torch.testing.assert_close(read_sample(out).tensor("token.ids")[:50], whole[:50], rtol=0, atol=0)

    def test_cut_to_the_models_positions(self, basic: tuple[object, ...], out: Path, tmp_path: Path) -> None:
        text = tmp_path / "long.txt"
        text.write_text("the old man walks near the house . " * 100, encoding="utf-8")
        result = run(*basic, "--prompt-file", text)
        assert f"first {POSITIONS - NEW} tokens (the model's {POSITIONS} positions" in result.stderr
        assert read_sample(out).summary.prompt_tokens == POSITIONS - NEW

    def test_no_room_for_a_prompt(self, basic: tuple[object, ...]) -> None:
        refuse(*basic, "--max-new-tokens", POSITIONS, words=("--max-new-tokens", "leave room", str(POSITIONS)))

    def test_a_text_bomb_is_cut_before_it_is_tokenised(
        self, basic: tuple[object, ...], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bomb, seen = tmp_path / "bomb.txt", []
        bomb.write_bytes(b"a" * (50 << 20))
        encode = capture_work.make_prompt.__globals__["encode"]

        def noted(loaded: object, text: str) -> torch.Tensor:
            seen.append(len(text))
            ids: torch.Tensor = encode(loaded, text)
            return ids

        monkeypatch.setitem(capture_work.make_prompt.__globals__, "encode", noted)
        result = run(*basic, "--prompt-file", bomb, "--max-length", 32)
        assert seen == [4096]
        assert "the prompt of 52,428,800 characters is cut" in result.stderr
        assert result.stderr.count("\n") == 1
        assert read_sample(out).summary.prompt_tokens == 32

    def test_a_file_that_is_no_text_for_any_model(self, basic: tuple[object, ...], tmp_path: Path) -> None:
        bomb = tmp_path / "bomb.txt"
        with bomb.open("wb") as file:
            file.truncate(1 << 40)  # a terabyte of zeros that takes no room
        refuse(*basic, "--prompt-file", bomb, words=("bomb.txt", "at most 128 MiB"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ("--cache-size 64", ("--cache-size must come with --compress",)),
            ("--no-compress --policy cake --tau1 1", ("--policy, --tau1", "--compress")),
            ("--compress --policy lru", ("policy", "'lru'")),
            ("--compress --cache-size 4", ("cache_size", "window_size")),
            ("--save-heads 0", ("--save-heads", "--save-attention")),
            ("--save-attention --save-layers 3-1", ("--save-layers", "3-1")),
            ("--save-attention --save-layers one", ("--save-layers", "'one'")),
            ("--save-attention --save-layers 0-99999999", ("--save-layers", "0-99999999")),
            ("--max-queries 0", ("--max-queries",)),
            ("--max-length 1", ("--max-length",)),
            ("--max-samples 0", ("--max-samples",)),
            ("--wikitext-index 1", ("--wikitext-index", "--use-wikitext")),
            ("--device quantum", ("--device", "'quantum'")),
        ],
    )
    def test_before_a_model_is_loaded(self, out: Path, options: str, words: tuple[str, ...]) -> None:
        refuse("capture", "--model", "./nowhere", "--output-dir", out, *options.split(), words=words)
        assert not out.exists()

    def test_layers_and_heads_that_the_model_lacks(self, basic: tuple[object, ...], out: Path) -> None:
        refuse(*basic, "--save-attention", "--save-layers", 2, words=("--save-layers", "below 2"))
        refuse(*basic, "--save-attention", "--save-heads", 2, words=("--save-heads", "below 2"))
        assert not out.exists()

    def test_a_capture_that_is_there(self, basic: tuple[object, ...], out: Path) -> None:
        run(*basic)
        before = (out / "attention_data_sample_0.safetensors").read_bytes()
        refuse(*basic, *POLICY, words=("has a capture already (samples 0)", "--force"))
        assert (out / "attention_data_sample_0.safetensors").read_bytes() == before
        run(*basic, *POLICY, "--force")
        assert read_sample(out).compressed

    def test_data_without_its_json_is_not_overwritten_either(self, basic: tuple[object, ...], out: Path) -> None:
        out.mkdir()
        (out / "attention_data_sample_7.safetensors").write_text("mine")
        refuse(*basic, words=("attention_data_sample_7.safetensors", "--force"))
        assert files(out) == ["attention_data_sample_7.safetensors"]

    def test_older_samples_are_told(self, basic: tuple[object, ...], tiny: Path, articles: Path, out: Path) -> None:
        arguments = ("--use-wikitext", "--prompt-file", articles, "--max-samples", 3)
        run("capture", "--model", tiny, "--output-dir", out, *arguments, "--max-new-tokens", 2)
        assert run_json(*basic, "--force")["older_samples"] == [1, 2]

    @pytest.mark.parametrize("below", [False, True])
    def test_a_file_in_the_way(self, basic: tuple[object, ...], out: Path, below: bool) -> None:
        out.write_text("mine")
        folder = out / "deeper" if below else out
        refuse(*basic, "--output-dir", folder, words=("--output-dir", str(out), "is a file"))
        assert out.read_text() == "mine"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written(self, basic: tuple[object, ...], tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        refuse(*basic, "--output-dir", closed / "capture", words=("--output-dir", "cannot"))

    def test_folders_made_for_nothing_are_removed(self, basic: tuple[object, ...], out: Path) -> None:
        arguments = ("--output-dir", out / "a" / "b", "--compress", "--policy", "random", "--tau1", 1)
        refuse(*basic, *arguments, words=("tau1",))
        refuse(*basic, "--output-dir", out / "a" / "b", "--prompt-file", out, words=("--prompt-file",))
        assert not out.exists()


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _at_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, interrupted at its n-th call."""
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return counted


# Two layers: the first article's prefill adds two layers, so the fifth one added belongs to a decode step.
POINTS = {
    "before the first pass": (capture_work, "run_model", 1, 0),
    "in prefill": (SampleCapture, "add", 2, 0),
    "in decode": (SampleCapture, "add", 5, 0),
    "while the data is written": (writer.shutil, "copyfileobj", 3, 0),
    "between data and JSON": (writer, "replace_text", 1, 0),
    "between samples": (capture_work, "make_prompt", 2, 1),
    "in the second sample": (capture_work, "run_model", 2, 1),
    "while the second is written": (writer, "replace_text", 2, 1),
}


class TestInterruption:
    @pytest.mark.parametrize("point", POINTS)
    def test_leaves_complete_samples_or_nothing(
        self, tiny: Path, articles: Path, out: Path, point: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owner, name, call, complete = POINTS[point]
        monkeypatch.setattr(owner, name, _at_call(call, getattr(owner, name)))
        texts = ("--use-wikitext", "--prompt-file", articles, "--max-samples", 3, "--max-new-tokens", 3)
        policy = ("--compress", "--cache-size", 12, "--window-size", 4)
        command = ("capture", "--model", tiny, "--output-dir", out, *texts, *policy)
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 130
        told = "1 sample is" if complete else "no samples are"
        assert result.stderr.splitlines()[-1] == f"stopped: {told} complete in {out}"
        monkeypatch.undo()
        expected = ["attention_data_sample_0.safetensors", "attention_summary_sample_0.json"] if complete else []
        assert files(out) == expected
        if complete:
            assert read_sample(out).events == 3
            run("analyze", out)
        else:
            assert not out.exists()
            refuse("analyze", out, words=("kvcompress capture",))

    def test_by_a_signal(self, tiny: Path, articles: Path, out: Path, tmp_path: Path) -> None:
        """A process is stopped as Ctrl-C does it, while it is in its second sample."""
        arguments = ("--use-wikitext", "--prompt-file", articles, "--max-samples", 3, "--output-dir", out)
        command = [sys.executable, "-m", "kvcompress.cli", "capture", "--model", tiny, *arguments]
        process = subprocess.Popen(
            [*map(str, command), "--max-new-tokens", "220", "--device", "cpu"],
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 120
        while not (out / "attention_summary_sample_0.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130
        complete = list_samples(out)
        assert complete in ([0], [0, 1])
        assert told.splitlines()[-1].startswith(f"stopped: {len(complete)} sample")
        assert len(files(out)) == 2 * len(complete)
        for index in complete:
            read_sample(out, index)


class TestModels:
    def test_short_names_are_those_of_the_presets(self) -> None:
        assert set(HUB_IDS) == set(PRESETS)
        assert all(id.count("/") == 1 for id in HUB_IDS.values())

    def test_what_is_loaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        asked: list[str] = []

        def noted(source: str, **_: object) -> None:
            asked.append(source)
            raise OSError("offline")

        monkeypatch.setattr("kvcompress.commands.loading.AutoConfig.from_pretrained", noted)
        place = Place(device=torch.device("cpu"), dtype=None)
        (tmp_path / "llama2-7b-chat-4k").mkdir()
        (tmp_path / "llama2-7b-chat-4k" / "config.json").touch()
        for name in ("qwen2.5-7b-instruct", "some/other", "llama2-7b-chat-4k"):  # a folder goes first
            with pytest.raises(CommandError):
                load_model(name, place)
        assert asked == ["Qwen/Qwen2.5-7B-Instruct", "some/other", "llama2-7b-chat-4k"]

    @pytest.mark.parametrize("name", HUB_IDS)
    def test_short_names_bring_their_preset_along(self, name: str) -> None:
        parameters = {"cache_size": 1024, "tau1": None}
        choice = policy_choice(parameters, compress=True, policy=None, preset=None, model=name, seed=0)
        assert choice is not None
        policy: Any = choice.policy(4096)
        assert (policy.tau1, policy.tau2) == preset(name, 1024)

    def test_own_temperatures_win(self) -> None:
        parameters = {"cache_size": 1024, "tau1": 3.0}
        choice = policy_choice(parameters, compress=True, policy=None, preset=None, model="llama3.1-8b-128k", seed=0)
        assert choice is not None
        policy: Any = choice.policy(4096)
        assert (policy.tau1, policy.tau2) == (3.0, 0.4)

    def test_other_policies_take_no_preset(self) -> None:
        choice = policy_choice({}, compress=True, policy="snapkv", preset=None, model="llama3.1-8b-128k", seed=0)
        assert choice is not None
        assert choice.preset is None


class TestUnderscores:
    @pytest.mark.parametrize("spelling", [["--max_new_tokens", "3"], ["--max_new_tokens=3"], ["--max-new_tokens", "3"]])
    def test_every_option_may_have_them(self, tiny: Path, out: Path, spelling: list[str]) -> None:
        run("capture", "--model", tiny, "--prompt", "the house", "--output_dir", out, *spelling)
        assert read_sample(out).events == 3

    @pytest.mark.parametrize("spelling", [["--prompt", "--a_b house_x"], ["--prompt=--a_b house_x"]])
    def test_values_are_left_alone(self, tiny: Path, out: Path, spelling: list[str]) -> None:
        run("capture", "--model", tiny, *spelling, "--output-dir", out / "under_score", "--max-new-tokens", 2)
        ids = AutoTokenizer.from_pretrained(tiny)("--a_b house_x")["input_ids"]
        sample = read_sample(out / "under_score")
        assert sample.tensor("token.ids")[: sample.summary.prompt_tokens].tolist() == ids

    def test_not_after_two_hyphens(self, out: Path) -> None:
        refuse("samples", "--", "--some_folder", words=("--some_folder",))

    def test_in_subcommands_too(self) -> None:
        refuse("bench", "sweep", "--cache_sizes", "many", "--policies", "cake", words=("--cache-sizes", "'many'"))
