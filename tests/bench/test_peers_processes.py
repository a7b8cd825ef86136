"""The two processes of a comparison with kvpress, and the environment that kvpress lives in."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from kvcompress.bench.peers import kvpress, peer_environment
from kvcompress.bench.peers.answering import Request, answer
from kvcompress.bench.peers.comparison import OURS, THEIRS, requests_of
from kvcompress.bench.peers.kept_sets import compare_kept
from kvcompress.bench.peers.kvpress_side import _matches, _unmasked
from kvcompress.bench.peers.methods import METHODS, Size
from kvcompress.bench.peers.our_side import OurSide
from kvcompress.bench.peers.peer_environment import FOLDER, PACKAGE, peer_python, peer_variables
from kvcompress.bench.peers.side_process import SideError, SideProcess, start_kvpress, start_ours
from kvcompress.bench.testbed.location import MODEL_DIR
from tests.bench.test_peers import BOTH_SIDES, prompts


class TestPositionsOfKvpress:
    """kvpress does not tell what it keeps; the keys do."""

    def test_kept_keys_are_found_in_the_full_cache(self) -> None:
        full = torch.randn(2, 3, 20, 4)
        chosen = torch.stack([torch.randperm(20)[:7] for _ in range(6)]).view(2, 3, 7)
        kept = full.gather(2, chosen[..., None].expand(-1, -1, -1, 4)).contiguous()
        assert _matches(kept, full) == chosen.sort(-1).values.tolist()

    def test_two_equal_keys_cannot_be_told_apart(self) -> None:
        full = torch.ones(1, 1, 2, 4)
        with pytest.raises(RuntimeError, match="the same key"):
            _matches(full[:, :, :1], full)

    def test_masked_places_are_not_kept(self) -> None:
        masked = (torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1]))
        assert _unmasked(masked, torch.zeros(2, 2, 3, 4)) == [[[0, 1], [1, 2]], [[0, 1, 2], [0, 2]]]


@pytest.fixture(scope="module")
def ours() -> Any:
    with start_ours(MODEL_DIR) as side:
        yield side


class TestProcess:
    def test_answers_as_in_this_process(self, ours: SideProcess, our_side: OurSide) -> None:
        setup = METHODS["cake"].ours(Size(tokens=128, kept=32))
        request = Request(prompts=prompts(), new_tokens=3, setup=setup, wants_kept=True)
        there, here = ours.ask(request), answer(our_side, request)
        assert (there.ids, there.kept, there.num_bytes) == (here.ids, here.kept, here.num_bytes)
        assert ours.versions["threads"] == 1

    def test_error_is_that_request_s_alone(self, ours: SideProcess) -> None:
        with pytest.raises(SideError, match=r"kvcompress: ValueError: policy must be one of"):
            ours.ask(Request(prompts=prompts(), new_tokens=1, setup={"name": "nonsense"}))
        assert ours.ask(Request(prompts=prompts(1), new_tokens=1, setup=None)).ids

    def test_a_side_that_ends_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SideError, match="the peer has ended with exit code 3: no such thing"):
            SideProcess("the peer", ["/bin/sh", "-c", "echo no such thing >&2; exit 3"], {})


class TestEnvironment:
    @pytest.fixture
    def installs(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """Commands that were run instead of pip."""
        commands: list[list[str]] = []

        def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            failed = "broken" in command[-1]
            return subprocess.CompletedProcess(command, int(failed), "", "a\nERROR: no such package\n\n")

        monkeypatch.setattr(peer_environment.subprocess, "run", run)
        monkeypatch.setattr(
            peer_environment.venv.EnvBuilder, "create", lambda self, folder: folder.mkdir(exist_ok=True)
        )
        return commands

    def test_is_made_once_for_each_list(self, tmp_path: Path, installs: list[list[str]]) -> None:
        listed = tmp_path / "list.txt"
        for text, runs in (("a==1\n", 1), ("a==1\n", 1), ("a==2\n", 2)):
            listed.write_text(text, encoding="utf-8")
            assert peer_python(tmp_path / "peer", listed) == tmp_path / "peer" / "bin" / "python"
            assert len(installs) == runs
        assert "--no-deps" in installs[0]

    def test_what_pip_says_last_is_told(self, tmp_path: Path, installs: list[list[str]]) -> None:
        listed = tmp_path / "broken.txt"
        listed.write_text("a==1\n", encoding="utf-8")
        with pytest.raises(RuntimeError, match="cannot be made: ERROR: no such package"):
            peer_python(tmp_path / "peer", listed)
        with pytest.raises(RuntimeError):
            peer_python(tmp_path / "peer", listed)
        assert len(installs) == 2, "a failure is not taken for an environment"

    def test_sees_this_package_and_nothing_beside_it(self, tmp_path: Path) -> None:
        for _ in range(2):
            place = Path(peer_variables(tmp_path)["PYTHONPATH"])
        assert [entry.name for entry in place.iterdir()] == ["kvcompress"]
        assert (place / "kvcompress").resolve() == PACKAGE

    def test_list_names_no_package_of_cuda(self) -> None:
        names = peer_environment.REQUIREMENTS.read_text(encoding="utf-8").lower()
        assert "kvpress==0.5.5" in names
        assert not [word for word in ("nvidia", "cuda", "triton") if word in names]


def test_wrong_options_end_with_code_2() -> None:
    app = typer.Typer()
    app.command()(kvpress.main)
    result = CliRunner().invoke(app, ["--policies", "nonsense"])
    assert result.exit_code == 2
    assert "policies must be among" in result.output


@pytest.mark.slow
@pytest.mark.skipif(
    not (FOLDER / ".ready").is_file(), reason="needs kvpress's environment; bench.peers.kvpress makes it"
)
def test_kvpress_keeps_the_same_tokens_where_the_method_is_the_same(ours: SideProcess) -> None:
    same = [name for name in BOTH_SIDES if name not in ("pyramidkv", "random")]
    with start_kvpress(MODEL_DIR) as theirs:
        for name in same:
            asked = requests_of(METHODS[name], Size(tokens=256, kept=48), prompts(2, 256), 2, wants_kept=True)
            found = compare_kept([(ours.ask(asked[OURS]), theirs.ask(asked[THEIRS]))], tokens=256)
            assert found["explained"] == found["rows"] == 2 * 6 * 2, name
            assert found["shared"] > 0.75, name
