"""Whatever is wrong with what the user gives: one line that says what, exit code 2, no traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from kvcompress.cli import app

TEXT = "the old man walks near the house ."


def refuse(*arguments: object, words: tuple[str, ...], stdin: bytes | None = None) -> None:
    """Assert exit code 2, nothing on stdout, and one line on stderr with the words."""
    result: Result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("kvcompress: error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def with_config(folder: Path, **changes: Any) -> None:
    """Change entries of a saved model's config."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | changes), encoding="utf-8")


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "broken"))


class TestPrompt:
    def test_neither(self) -> None:
        refuse("generate", words=("exactly one", "--prompt", "--prompt-file", "neither"))

    def test_both(self, prompt_file: Path) -> None:
        refuse("generate", "--prompt", "a", "--prompt-file", prompt_file, words=("exactly one", "both"))

    @pytest.mark.parametrize(("text", "got"), [("", "nothing"), (" \n\t", "only white space")])
    def test_empty(self, text: str, got: str) -> None:
        refuse("generate", "--prompt", text, words=("--prompt", got))

    def test_bytes_that_are_no_text(self) -> None:
        refuse("generate", "--prompt", "a\udcff", words=("--prompt", "UTF-8"))

    def test_missing_file(self, tmp_path: Path) -> None:
        refuse("generate", "--prompt-file", tmp_path / "none", words=("--prompt-file", "none", "must be a file"))

    def test_folder(self, tmp_path: Path) -> None:
        refuse("generate", "--prompt-file", tmp_path, words=("--prompt-file", "can be read"))

    @pytest.mark.parametrize(("data", "word"), [(b"", "nothing"), (b"\n", "nothing"), (b"abc\xff", "0xff at offset 3")])
    def test_file_without_text(self, tmp_path: Path, data: bytes, word: str) -> None:
        path = tmp_path / "prompt.bin"
        path.write_bytes(data)
        refuse("generate", "--prompt-file", path, words=("prompt.bin", word))

    def test_empty_stdin(self) -> None:
        refuse("generate", "--prompt-file", "-", stdin=b"", words=("stdin", "nothing"))


# No model is loaded before these are found out: the folder need not be one.
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--policy lru", ("policy", "cake, cake_reference", "'lru'")),
        ("--cache-size 16", ("cache_size", "at least window_size", "16", "32")),
        ("--cache-size 32 --window-size 33", ("cache_size", "window_size=33")),
        ("--cache-size 0", ("cache_size", "at least 1")),
        ("--window-size 0", ("window_size", "at least 1")),
        ("--sink-tokens -1", ("sink_tokens", "at least 0")),
        ("--cache-size 64 --compression-ratio 0.5", ("exactly one", "cache_size", "compression_ratio")),
        ("--compression-ratio 1", ("compression_ratio", "[0, 1)")),
        ("--compression-ratio nan", ("compression_ratio", "finite")),
        ("--tau1 0", ("tau1", "greater than 0")),
        ("--tau2 -1", ("tau2", "greater than 0")),
        ("--gamma -1", ("gamma", "at least 0")),
        ("--policy snapkv --tau1 1", ("'snapkv'", "no parameter tau1")),
        ("--base cake", ("'cake'", "no parameter base")),
        ("--policy adakv --base lru", ("policy", "cake, cake_reference", "'lru'")),
        ("--policy criticalkv --base knorm", ("CriticalKV", "'knorm'")),
        ("--policy adakv --floor 1.5", ("floor", "[0, 1]")),
        ("--policy adakv --base snapkv --tau1 1", ("'snapkv'", "no parameter tau1")),
        ("--policy full --cache-size 64", ("Full", "cache_size=64", "Leave them out")),
        ("--preset llama9", ("preset", "llama3.1-8b-128k", "'llama9'")),
        ("--preset llama3.1-8b-128k --policy snapkv", ("--preset", "CAKE", "'snapkv'")),
        ("--max-new-tokens 0", ("--max-new-tokens", "--help")),
        ("--max-new-tokens many", ("--max-new-tokens", "--help")),
        ("--temperature -1", ("--temperature", "--help")),
        ("--device quantum", ("--device", "'quantum'", "cpu")),
        ("--device meta", ("--device", "meta")),
        ("--device cuda:99", ("--device", "cuda:99", "cpu")),
        ("--dtype int3", ("--dtype", "'int3'", "float32")),
        ("--colour red", ("--colour", "--help")),
    ],
)
def test_option(options: str, words: tuple[str, ...]) -> None:
    refuse("generate", "--model", "./nowhere", "--prompt", TEXT, *options.split(), words=words)


def test_unknown_command() -> None:
    refuse("genrate", words=("genrate", "--help"))


class TestModel:
    @staticmethod
    def refuse(model: object, *words: str) -> None:
        refuse("generate", "--model", model, "--prompt", TEXT, words=("--model", *words))

    def test_folder_without_config(self, tmp_path: Path) -> None:
        self.refuse(tmp_path, "config.json", "has none")

    def test_file(self, prompt_file: Path) -> None:
        self.refuse(prompt_file, "the file", "Give its folder")

    def test_no_such_folder(self) -> None:
        self.refuse("./nowhere", "there is no './nowhere'")

    def test_nothing(self) -> None:
        self.refuse("", "got nothing")

    def test_unknown_id_offline(self) -> None:
        self.refuse("nobody/nothing-here", "hub", "'nobody/nothing-here'", "network")

    def test_weights_that_could_run_code(self, broken: Path) -> None:
        torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
        (broken / "model.safetensors").unlink()
        self.refuse(broken, "safetensors", "never read", "Convert")

    def test_code_of_its_own(self, broken: Path, tmp_path: Path) -> None:
        with_config(broken, model_type="mine", auto_map={"AutoConfig": "mine.Config"})
        (broken / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
        self.refuse(broken, "code of its own", "never run")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda folder: (folder / "config.json").write_text("{oops"), ("cannot be loaded", "JSON")),
            (lambda folder: with_config(folder, model_type="mine"), ("cannot be loaded", "mine")),
            (lambda folder: (folder / "model.safetensors").write_bytes(b"junk" * 99), ("cannot be loaded",)),
            (lambda folder: (folder / "tokenizer.json").unlink(), ("tokenizer",)),
            (lambda folder: with_config(folder, intermediate_size=48), ("shapes", "mlp", "48")),
        ],
        ids=["config", "unknown-type", "weights", "tokenizer", "shapes"],
    )
    def test_damaged(self, broken: Path, damage: Callable[[Path], object], words: tuple[str, ...]) -> None:
        damage(broken)
        self.refuse(broken, *words)

    @pytest.mark.parametrize(
        ("kind", "config", "words"),
        [
            (
                "T5ForConditionalGeneration",
                transformers.T5Config(vocab_size=99, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2),
                ("--model", "encoder-decoder", "t5"),
            ),
            (
                "ViTModel",
                transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2),
                ("--model", "vit"),
            ),
            (
                "BertForMaskedLM",
                transformers.BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=2),
                ("--model", "looks ahead"),
            ),
            (
                "BloomForCausalLM",
                transformers.BloomConfig(vocab_size=929, hidden_size=8, n_layer=1, n_head=2),
                ("AttentionInterface", "BloomForCausalLM"),
            ),
        ],
        ids=["encoder-decoder", "no-text", "bidirectional", "own-attention"],
    )
    def test_kind(self, broken: Path, kind: str, config: transformers.PreTrainedConfig, words: tuple[str, ...]) -> None:
        getattr(transformers, kind)(config).save_pretrained(broken)
        refuse("generate", "--model", broken, "--prompt", TEXT, words=words)

    def test_positions_beyond_a_table(self, broken: Path) -> None:
        config = transformers.GPT2Config(
            vocab_size=929, n_embd=8, n_layer=1, n_head=2, n_positions=16, eos_token_id=2, bos_token_id=1
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(broken)
        arguments = ("generate", "--model", broken, "--prompt", TEXT, "--max-new-tokens", 16)
        refuse(*arguments, words=("16 positions", "has no others", "Shorten"))

    def test_weights_left_out_are_told(self, broken: Path) -> None:
        weights = load_file(broken / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        result = CliRunner().invoke(app, ["generate", "--model", str(broken), "--prompt", TEXT])
        assert result.exit_code == 0
        assert "drawn at random (1, e.g. lm_head.weight)" in result.stderr
