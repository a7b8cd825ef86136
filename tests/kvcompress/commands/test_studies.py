"""tucker, similarity and prune from the command line: files as documented, clear errors, nothing overwritten."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from kvcompress.analysis.factorisation.layer_states import cached_text
from kvcompress.analysis.factorisation.ranks import Ranks
from kvcompress.analysis.factorisation.tucker import decompose
from kvcompress.analysis.fidelity.fidelity import fidelity
from kvcompress.analysis.pruning.edited_cache import Edited, EditedCache, PromptStates
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.commands.failures import OneLineErrors
from kvcompress.commands.prune import prune
from kvcompress.commands.similarity import similarity
from kvcompress.commands.texts import choose_text
from kvcompress.commands.tucker import tucker

app = typer.Typer(cls=OneLineErrors, add_completion=False, pretty_exceptions_enable=False)
for command in (tucker, similarity, prune):
    app.command()(command)

FILES = {"tucker": "tucker.json", "similarity": "similarity.json", "prune": "pruning.json"}
SMALL = {
    "tucker": ["--sequence-length", "48", "--steps", "8", "--layers", "1"],
    "similarity": ["--sequence-length", "48", "--layers", "0-1"],
    "prune": ["--sequence-length", "48", "--steps", "8", "--what", "heads", "--ratios", "0.5"],
}


def run(*arguments: Any, plots: bool = False) -> Result:
    words = [*arguments, *([] if plots else ["--no-plots"])]
    return CliRunner().invoke(app, [str(word) for word in words])


def content_of(result: Result, folder: Path, name: str) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def testbed() -> Any:
    return load_testbed()


@pytest.fixture(scope="module")
def ids(testbed: Any) -> list[int]:
    text = choose_text(None, None, False, 0, testbed[1], embedded=True)
    found: list[int] = testbed[1](text)["input_ids"]
    return found


def test_tucker_writes_what_its_functions_say(tmp_path: Path, testbed: Any, ids: list[int]) -> None:
    options = ["--token-rank", 12, "--embedding-rank", 8, "--head-rank", 2, "--layers", "0,3"]
    result = run("tucker", *options, "--sequence-length", 64, "--steps", 16, "--output-dir", tmp_path)
    content = content_of(result, tmp_path, "tucker.json")
    assert content["schema"] == "kvcompress.tucker/1"
    assert content["model"] == {"name": "embedded", "device": "cpu", "dtype": "float32"}
    assert content["ranks"] == {"head": 2, "token": 12, "embedding": 8}
    assert [(entry["layer"], entry["target"]) for entry in content["layers"]] == [
        (layer, target) for layer in (0, 3) for target in ("keys", "values")
    ]
    states = {entry.layer: entry for entry in cached_text(testbed[0], ids[:64]).layers}
    for entry in content["layers"]:
        direct = decompose(states[entry["layer"]].of(entry["target"]), Ranks(token=12, embedding=8, head=2))
        assert entry["relative_error"] == pytest.approx(direct.relative_error, rel=1e-4)
        assert entry["bytes"] == direct.num_bytes
        assert entry["core_shape"] == [2, 12, 8]
        assert f"{entry['relative_error']:.3f}" in result.output
    assert {entry["fraction"] for entry in content["rank_sweep"]} == {0.125, 0.25, 0.5, 0.75}
    assert [entry["layer"] for entry in content["sensitivity"]] == [0, 3]
    assert content["sensitivity_setting"] == {"context": 64, "steps": 16, "windows": 1}
    assert all(0 <= entry["top1"] <= 1 and entry["kl"] >= 0 for entry in content["sensitivity"])


def test_sensitivity_can_be_left_out(tmp_path: Path) -> None:
    content = content_of(
        run("tucker", *SMALL["tucker"], "--no-sensitivity", "--output-dir", tmp_path), tmp_path, "tucker.json"
    )
    assert content["sensitivity"] is None
    assert content["sensitivity_setting"] is None


def test_similarity_writes_bounded_matrices(tmp_path: Path) -> None:
    options = ["--sequence-length", 64, "--max-tokens", 9, "--thresholds", "0.5,0.8", "--layers", "0,2"]
    result = run("similarity", *options, "--output-dir", tmp_path)
    content = content_of(result, tmp_path, "similarity.json")
    assert content["tokens"] == 64
    assert content["token_positions"] == [0, 7, 15, 23, 31, 39, 47, 55, 63]
    assert content["layer_indices"] == [0, 2]
    for entry in content["layers"]:
        matrix = torch.tensor(entry["token_cosine"])
        assert matrix.shape == (9, 9)
        assert torch.equal(matrix, matrix.T)
        assert torch.allclose(matrix.diagonal(), torch.ones(9))
        assert [step["threshold"] for step in entry["redundancy"]] == [0.5, 0.8]
    assert "show 9 of them" in result.output


def test_prune_measures_the_logits(tmp_path: Path, testbed: Any, ids: list[int]) -> None:
    options = ["--what", "layers", "--ratios", "0,0.5,1", "--orders", "first", "--sequence-length", 64, "--steps", 16]
    content = content_of(run("prune", *options, "--output-dir", tmp_path), tmp_path, "pruning.json")
    none, half, all_ = content["points"]
    assert (none["dropped"], half["dropped"], all_["dropped"]) == (0, 3, 6)
    assert none["kl"] < 1e-6
    assert none["perplexity"] == pytest.approx(none["full_perplexity"], rel=1e-4)
    model = testbed[0]

    def first_half_gone(states: PromptStates) -> Edited:
        keep = torch.full_like(states.positions, states.layer >= 3, dtype=torch.bool)
        return Edited(keys=states.keys, values=states.values, keep=keep)

    windows = torch.tensor([ids[:81]])
    direct = fidelity(model, lambda: EditedCache(model, first_half_gone), windows, context=64, chunk=16)
    assert half["kl"] == pytest.approx(direct.kl, rel=1e-3)
    assert half["top1"] == pytest.approx(direct.top1)
    assert [len(row) for row in content["importance"]["heads"]] == [2] * 6
    assert len(content["importance"]["tokens"][0]) == len(content["importance"]["token_positions"]) == 64
    assert content["importance"]["tokens"][0][-1] is None


def test_prune_leaves_heads_out_where_it_is_told_to(tmp_path: Path) -> None:
    result = run("prune", *SMALL["prune"], "--leave-one-out", "--output-dir", tmp_path)
    content = content_of(result, tmp_path, "pruning.json")
    assert content["importance"]["heads_unit"] == "KL without the head, nats"
    heads = [score for layer in content["importance"]["heads"] for score in layer]
    assert len(heads) == 12
    assert min(heads) >= 0


@pytest.mark.parametrize("name", FILES)
def test_json_is_one_object_and_files_are_not_overwritten(name: str, tmp_path: Path) -> None:
    arguments = [name, *SMALL[name], "--output-dir", tmp_path / "new"]
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    path = tmp_path / "new" / FILES[name]
    assert printed["written"] == [str(path)]
    before = path.read_bytes()
    again = run(*arguments)
    assert again.exit_code == 2
    assert "is there already" in again.output
    assert "--force" in again.output
    assert path.read_bytes() == before
    path.write_text("old", encoding="utf-8")
    assert run(*arguments, "--force").exit_code == 0
    assert json.loads(path.read_bytes())["schema"] == printed["schema"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tucker", "--layers", "x"], "--layers must be whole numbers or ranges"),
        (["tucker", "--layers", "9"], "layers must be among those that keep every token"),
        (["tucker", "--token-rank", "400"], "the token rank must be at most"),
        (["tucker", "--embedding-rank", "65"], "the embedding rank must be at most 64"),
        (["tucker", "--embedding-rank", "0"], "--embedding-rank"),
        (["tucker", "--prompt", "apple"], "the text must have at least"),
        (["similarity", "--thresholds", "2"], r"--thresholds must be numbers in [-1, 1]"),
        (["prune", "--what", "experts"], "--what must be of layers, heads, dimensions, tokens"),
        (["prune", "--what", "heads,heads"], "each once"),
        (["prune", "--orders", "best"], "--orders must be of"),
        (["prune", "--ratios", "1.5"], "--ratios must be numbers in [0, 1]"),
        (["prune", "--ratios", ","], "--ratios must be numbers"),
        (["prune", "--sequence-length", "99999", "--prompt-file", "LONG"], "was made for 4096 positions"),
        (["similarity", "--model", "nowhere/at/all"], "there is no"),
        (["similarity", "--prompt", "a", "--use-wikitext"], "--use-wikitext"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    if "LONG" in arguments:
        long = tmp_path / "long.txt"
        long.write_text("apple " * 6000, encoding="utf-8")
        arguments = [str(long) if argument == "LONG" else argument for argument in arguments]
    result = run(*arguments, "--output-dir", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("name", FILES)
def test_pictures_are_drawn_beside_the_numbers_and_not_overwritten(name: str, tmp_path: Path) -> None:
    arguments = [name, *SMALL[name], "--output-dir", tmp_path]
    result = run(*arguments, "--json", plots=True)
    assert result.exit_code == 0, result.output
    written = [Path(path) for path in json.loads(result.stdout)["written"]]
    folder = Path(FILES[name]).stem
    assert written[0] == tmp_path / FILES[name]
    assert sorted(written[1:]) == sorted((tmp_path / folder).iterdir())
    assert len(written) > 2
    for path in written[1:]:
        assert path.read_bytes().startswith(b"\x89PNG")
    written[0].unlink()
    again = run(*arguments, plots=True)
    assert again.exit_code == 2
    assert "would be overwritten" in again.output
    assert not written[0].exists()
    assert run(*arguments, "--force", plots=True).exit_code == 0


def test_what_was_not_measured_is_not_drawn_and_said_so(tmp_path: Path) -> None:
    result = run("tucker", *SMALL["tucker"], "--no-sensitivity", "--output-dir", tmp_path, plots=True)
    assert result.exit_code == 0, result.output
    assert "layer_sensitivity is not drawn" in " ".join(result.output.split())
    assert [path.name for path in (tmp_path / "tucker").iterdir()] == ["tucker_components.png"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    result = run("similarity", "--output-dir", file / "folder")
    assert result.exit_code == 2
    assert "--output-dir must be a folder that can be written" in " ".join(result.output.split())


def test_a_short_text_is_taken_whole_and_said_so(tmp_path: Path) -> None:
    text = " ".join(["apple", "banana", "cherry", "lemon"] * 8)
    result = run("similarity", "--prompt", text, "--output-dir", tmp_path)
    content = content_of(result, tmp_path, "similarity.json")
    assert content["tokens"] == 33  # with the beginning of the text
    assert "its first 33 are studied" in result.output


def test_other_models_are_taken(tiny: Path, prompt_file: Path, tmp_path: Path) -> None:
    result = run("tucker", "--model", tiny, "--prompt-file", prompt_file, *SMALL["tucker"], "--output-dir", tmp_path)
    content = content_of(result, tmp_path, "tucker.json")
    assert content["model"]["name"] == str(tiny)
    assert content["layers"][0]["shape"] == [1, 48, 16]


@pytest.mark.parametrize("name", ["tucker", "similarity", "prune"])
def test_a_refused_run_leaves_no_folder_behind(tmp_path: Path, name: str) -> None:
    result = run(name, "--prompt", "", "--output-dir", tmp_path / "a" / "b")
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []
