"""`kvcompress generate`: the text, what it tells, and the comparison with the full cache."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from kvcompress.bench.testbed.tasks import make_example
from kvcompress.cli import app

PROMPT_TOKENS, POSITIONS = 128, 256  # as in conftest.py
NEW = 12


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    result: Result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def basic(tiny: Path, prompt_file: Path) -> tuple[object, ...]:
    return ("generate", "--model", tiny, "--prompt-file", prompt_file, "--max-new-tokens", NEW, "--device", "cpu")


def run_json(*arguments: object) -> dict[str, Any]:
    lines = run(*arguments, "--json").stdout.splitlines()
    assert len(lines) == 1
    loaded: dict[str, Any] = json.loads(lines[0])
    return loaded


@pytest.fixture
def full_text(tiny: Path) -> str:
    """What transformers alone generates."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    inputs = tokenizer(make_example("needle_8", PROMPT_TOKENS).prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    return str(tokenizer.decode(output[0, PROMPT_TOKENS:], skip_special_tokens=True))


def test_policy_full_streams_what_transformers_generates(basic: tuple[object, ...], full_text: str) -> None:
    result = run(*basic, "--policy", "full")
    assert result.stdout.startswith(full_text + "\n")
    assert result.stderr == ""  # a full cache that was asked for is nothing to warn of


def test_summary_tells_bytes_speed_and_layers(basic: tuple[object, ...]) -> None:
    result = run(*basic, "--cache-size", 40, "--window-size", 8)
    for words in ("cake (cache_size=40, window_size=8", "tokens/s", "first token", "% saved", "per layer"):
        assert words in result.stdout
    bars = [line.split() for line in result.stdout.splitlines() if line[:2] in ("0 ", "1 ")]
    assert [bar[0] for bar in bars] == ["0", "1"]
    assert sum(int(bar[-1]) for bar in bars) == 80
    assert result.stderr == ""


def test_json_has_the_documented_keys(basic: tuple[object, ...]) -> None:
    told = run_json(*basic, "--cache-size", 40, "--window-size", 8, "--sink-tokens", 2, "--tau1", 0.5)
    assert set(told) == {
        *("schema", "model", "device", "dtype", "policy", "prompt_tokens", "text", "new_tokens", "ended"),
        *("time_to_first_token_s", "decode_tokens_per_s", "kv_bytes", "seen_tokens", "layers", "full", "warnings"),
    }
    assert told["schema"] == "kvcompress.generate/1"
    given = {"name": "cake", "cache_size": 40, "window_size": 8, "sink_tokens": 2, "tau1": 0.5, "tau2": 1.0}
    assert given.items() <= told["policy"].items()
    assert (told["prompt_tokens"], told["new_tokens"], told["ended"]) == (PROMPT_TOKENS, NEW, False)
    assert (told["device"], told["dtype"], told["full"]) == ("cpu", "float32", None)
    assert told["seen_tokens"] == PROMPT_TOKENS + NEW - 1
    # two layers, one head, keys and values of dimension 16 in float32
    assert told["kv_bytes"]["full"] == told["seen_tokens"] * 2 * 2 * 16 * 4
    assert told["kv_bytes"]["saved"] == told["kv_bytes"]["full"] - told["kv_bytes"]["held"]
    assert told["kv_bytes"]["saved_fraction"] > 0.5
    assert sum(layer["kept_tokens"] for layer in told["layers"]) == 80
    assert told["time_to_first_token_s"] > 0
    assert told["decode_tokens_per_s"] > 0


def test_compare_full_with_itself_agrees(basic: tuple[object, ...], full_text: str) -> None:
    told = run_json(*basic, "--policy", "full", "--compare-full")
    assert told["text"] == told["full"]["text"] == full_text
    assert told["full"]["agreement"] == {"tokens": NEW, "leading": NEW, "equal": NEW}
    prediction = told["full"]["next_token"]
    assert prediction["steps"] == NEW - 1
    assert prediction["max_kl_nats"] < 1e-9  # float32 sums in another order
    assert prediction["top1_agreement"] == 1.0
    assert told["full"]["kv_bytes"] == told["kv_bytes"]["full"]


def test_compare_full_sees_the_compression(basic: tuple[object, ...]) -> None:
    told = run_json(*basic, "--cache-size", 8, "--window-size", 4, "--compare-full")
    prediction = told["full"]["next_token"]
    assert prediction["mean_kl_nats"] > 1e-7
    assert prediction["max_kl_nats"] >= prediction["mean_kl_nats"]
    assert told["full"]["kv_bytes"] > 5 * told["kv_bytes"]["held"]
    for words in ("full cache", "equal tokens", "KL(full || compressed)"):
        assert words in run(*basic, "--cache-size", 8, "--window-size", 4, "--compare-full").stdout


def test_one_token_leaves_nothing_to_compare(tiny: Path) -> None:
    told = run_json(
        *("generate", "--model", tiny, "--prompt", "the old man .", "--max-new-tokens", 1, "--compare-full")
    )
    assert told["full"]["next_token"] is None
    assert told["decode_tokens_per_s"] is None


class TestSize:
    def test_default_is_half_the_prompt(self, basic: tuple[object, ...]) -> None:
        assert run_json(*basic)["policy"]["cache_size"] == PROMPT_TOKENS // 2

    def test_default_holds_window_and_sinks(self, basic: tuple[object, ...]) -> None:
        told = run_json(*basic, "--window-size", 70, "--sink-tokens", 3)
        assert told["policy"]["cache_size"] == 73

    def test_ratio(self, basic: tuple[object, ...]) -> None:
        told = run_json(*basic, "--compression-ratio", 0.75, "--policy", "snapkv", "--window-size", 8)
        assert told["policy"]["cache_size"] is None
        assert sum(layer["kept_tokens"] for layer in told["layers"]) == 2 * (PROMPT_TOKENS // 4 + NEW - 1)

    def test_wrapper_hands_its_sizes_to_the_base(self, basic: tuple[object, ...]) -> None:
        sizes = ("--cache-size", 40, "--window-size", 8, "--sink-tokens", 2)
        told = run_json(*basic, "--policy", "adakv", "--base", "cake", "--floor", 0.5, "--tau1", 2, *sizes)
        assert told["policy"].items() >= {"name": "adakv", "cache_size": 40, "window_size": 8, "floor": 0.5}.items()
        assert told["policy"]["base"].items() >= {"cache_size": 40, "sink_tokens": 2, "tau1": 2.0}.items()
        alone = run_json(*basic, "--policy", "cake", "--tau1", 2, *sizes)
        kept = [[layer["kept_tokens"] for layer in run["layers"]] for run in (told, alone)]
        assert sum(kept[0]) == sum(kept[1])

    def test_floor_of_one_shares_equally(self, basic: tuple[object, ...]) -> None:
        sizes = ("--cache-size", 40, "--window-size", 8)
        equal = run_json(*basic, "--policy", "adakv", "--base", "snapkv", "--floor", 1, *sizes)
        assert equal["text"] == run_json(*basic, "--policy", "snapkv", *sizes)["text"]

    def test_preset_yields_to_what_is_given(self, basic: tuple[object, ...]) -> None:
        told = run_json(*basic, "--cache-size", 100, "--preset", "mistral-0.3-7b-32k", "--tau2", 3)
        assert (told["policy"]["tau1"], told["policy"]["tau2"]) == (1.0, 3.0)

    def test_nothing_evicted_is_told(self, basic: tuple[object, ...]) -> None:
        result = run(*basic, "--cache-size", 1000, "--json")
        (warning,) = json.loads(result.stdout)["warnings"]
        assert "nothing was evicted" in warning
        assert f"all {PROMPT_TOKENS + NEW - 1} tokens fit in cache_size=1000" in warning
        assert result.stderr == f"kvcompress: warning: {warning}\n"


def test_beyond_the_positions_is_told(basic: tuple[object, ...]) -> None:
    (warning,) = run_json(*basic, "--max-new-tokens", POSITIONS - PROMPT_TOKENS + 1)["warnings"]
    assert f"beyond the {POSITIONS} positions" in warning


def test_stdin_is_the_same_prompt(tiny: Path, prompt_file: Path) -> None:
    tail = ("--max-new-tokens", 4, "--json")
    piped = run("generate", "--model", tiny, "--prompt-file", "-", *tail, stdin=prompt_file.read_bytes())
    given = run("generate", "--model", tiny, "--prompt", prompt_file.read_text().rstrip("\n"), *tail)
    assert json.loads(piped.stdout)["text"] == json.loads(given.stdout)["text"]
    assert json.loads(piped.stdout)["prompt_tokens"] == PROMPT_TOKENS


def test_seed_decides_samples(basic: tuple[object, ...]) -> None:
    texts = [run_json(*basic, "--temperature", 1.5, "--seed", seed)["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_dtype_is_taken(basic: tuple[object, ...]) -> None:
    assert run_json(*basic, "--dtype", "bfloat16")["dtype"] == "bfloat16"


def process(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kvcompress.cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[3], **pipes, **options)


def test_process_streams_and_ends_well(basic: tuple[object, ...]) -> None:
    child = process(*basic, "--cache-size", 40, "--window-size", 8)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, err) == (0, "")
    assert "tokens kept per layer" in out


def test_process_refuses_in_one_line() -> None:
    child = process("generate", "--prompt", "")
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out) == (2, "")
    assert err == "kvcompress: error: --prompt must hold some text; got nothing\n"


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_process_is_quiet_when_interrupted(tiny: Path) -> None:
    child = process("generate", "--model", tiny, "--prompt", "the old man .", "--max-new-tokens", 100_000)
    assert child.stdout is not None
    assert child.stdout.read(1)  # the text has begun
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in err
    assert "error" not in err
