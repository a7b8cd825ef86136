"""Peers side by side: equal sizes on both sides, what each side tells, how kept sets and times are compared."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kvcompress import CompressedCache, make_policy
from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.bench.comparison_tables import peers_accuracy, peers_speed
from kvcompress.bench.peers import kvpress
from kvcompress.bench.peers.answering import Answer, Kept, Request, answer
from kvcompress.bench.peers.comparison import OURS, THEIRS, accuracy, speed
from kvcompress.bench.peers.kept_sets import compare_kept
from kvcompress.bench.peers.methods import METHODS, WINDOW, Size, chosen_methods
from kvcompress.bench.peers.our_side import OurSide, tied
from kvcompress.bench.tasks.sample import QUERY_AGNOSTIC
from kvcompress.bench.testbed.tasks import make_example

BOTH_SIDES = [name for name, method in METHODS.items() if method.theirs is not None]


def prompts(count: int = 2, length: int = 128) -> list[list[int]]:
    return [make_example("needle_8", length, index=index).prompt_ids for index in range(count)]


@given(st.integers(WINDOW + 2, 1 << 17).flatmap(lambda n: st.tuples(st.just(n), st.integers(WINDOW + 1, n - 1))))
def test_kvpress_keeps_as_many_whether_it_truncates_or_rounds(sizes: tuple[int, int]) -> None:
    tokens, kept = sizes
    left = tokens * (1 - Size(tokens=tokens, kept=kept).ratio)
    assert int(left) == round(left) == kept


@pytest.mark.parametrize("kept", [WINDOW, 100])
def test_a_size_that_evicts_nothing_or_all_is_refused(kept: int) -> None:
    with pytest.raises(ValueError, match="kept must lie between the window of 8 tokens and the prompt's 100"):
        Size(tokens=100, kept=kept)


@pytest.mark.parametrize("name", METHODS)
def test_our_policies_keep_that_many_and_never_grow(name: str) -> None:
    policy = make_policy(**METHODS[name].ours(Size(tokens=512, kept=64)))
    assert policy.cache_size == 64
    assert not policy.decode_rule.grows


@given(st.integers(WINDOW + 1, 4096))
def test_floor_per_head_is_kvpress_s_beyond_the_window(kept: int) -> None:
    floor = METHODS["adakv"].ours(Size(tokens=8192, kept=kept))["floor"]
    assert int(floor * (kept - WINDOW)) == max(int(kept * 0.2) - WINDOW, 0)


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ValueError, match=r"policies must be among snapkv, .*; got nonsense"):
        chosen_methods(["snapkv", "nonsense"])


class TestOurSide:
    def test_full_cache_answers_as_generate_does(self, our_side: OurSide) -> None:
        asked = prompts()
        found = answer(our_side, Request(prompts=asked, new_tokens=3, setup=None))
        ids = torch.tensor(asked)
        expected = our_side.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0
        )
        assert found.ids == expected[:, 128:].tolist()
        config = our_side.model.config
        token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
        assert found.num_bytes == 2 * 128 * token
        assert found.final_bytes == 2 * 130 * token
        assert found.kept is found.tied is None

    def test_tells_what_it_keeps_and_never_holds_more(self, our_side: OurSide) -> None:
        setup = METHODS["snapkv"].ours(Size(tokens=128, kept=32))
        found = answer(our_side, Request(prompts=prompts(), new_tokens=4, setup=setup, wants_kept=True))
        assert found.num_bytes == found.final_bytes
        assert found.kept is not None
        assert found.tied is not None
        window = set(range(128 - WINDOW, 128))
        for layer, ties in zip(found.kept, found.tied, strict=True):
            for rows, tied_rows in zip(layer, ties, strict=True):
                for row, tied_row in zip(rows, tied_rows, strict=True):
                    assert len(row) == len(set(row)) == 32
                    assert window < set(row)
                    assert set(tied_row) & set(row), "the worst token kept ties with itself"

    def test_asking_for_what_is_kept_changes_nothing(self, our_side: OurSide) -> None:
        setup = METHODS["cake"].ours(Size(tokens=128, kept=32))
        plain, told = (
            answer(our_side, Request(prompts=prompts(), new_tokens=3, setup=setup, wants_kept=wanted))
            for wanted in (False, True)
        )
        assert (plain.ids, plain.num_bytes) == (told.ids, told.num_bytes)

    def test_question_comes_after_the_compression(self, our_side: OurSide) -> None:
        examples = [make_example("needle_8", 128, index=index) for index in range(2)]
        setup = METHODS["keydiff"].ours(Size(tokens=examples[0].question_start, kept=40))
        contexts, questions = ([e.context_ids for e in examples], [e.question_ids for e in examples])
        request = Request(prompts=contexts, questions=questions, new_tokens=3, setup=setup, wants_kept=True)
        found = answer(our_side, request)
        talk = Conversation(our_side.model, CompressedCache(our_side.model, make_policy(**setup)))
        talk.feed(contexts)
        ids = [talk.feed(questions).argmax(-1)]
        while len(ids) < 3:
            ids.append(talk.step(ids[-1]).argmax(-1))
        assert found.ids == torch.stack(ids, dim=1).tolist()
        assert found.num_bytes == found.final_bytes
        assert found.kept is not None
        assert max(position for head in found.kept[0][0] for position in head) == examples[0].question_start - 1

    def test_time_is_the_clock_s_and_leaves_the_questions_out(self, our_side: OurSide) -> None:
        ticks = iter([10.0, 11.0, 50.0, 50.5])
        found = answer(our_side, Request(prompts=prompts(1), new_tokens=3, setup=None), clock=lambda: next(ticks))
        assert (found.prefill_seconds, found.decode_seconds) == (1.0, 0.5)


class TestTies:
    def test_are_what_rounding_could_swap(self) -> None:
        scores = torch.tensor([0.5, 0.3, 0.3 * (1 + 1e-5), 0.3 * (1 + 1e-3), 0.1])
        assert tied(scores, [0, 2, 3, 9]) == [1, 2]  # 9 is in the window

    def test_scores_that_vanish_tie_and_small_ones_do_not(self) -> None:
        assert tied(torch.tensor([1.0, 0.0, 1e-30, 0.0, 0.2]), [0, 1, 4]) == [1, 3]

    def test_sinks_and_padding_do_not_count(self) -> None:
        infinity = float("inf")
        assert tied(torch.tensor([infinity, 0.5, 0.2, -infinity]), [0, 1]) == [1]

    def test_only_the_window_is_kept(self) -> None:
        assert tied(torch.tensor([0.1, 0.2]), [2, 3]) == []


def told(kept: list[int], ties: list[int] | None = None) -> Answer:
    """An answer about one prompt, layer and head."""
    sets: list[Kept | None] = [None if row is None else [[[row]]] for row in (kept, ties)]
    return Answer(
        ids=[[1]], prefill_seconds=1, decode_seconds=1, num_bytes=1, final_bytes=1, kept=sets[0], tied=sets[1]
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "ties", "equal", "explained"),
    [
        ([1, 2, 9], [1, 2, 9], [2], True, True),
        ([1, 2, 9], [1, 3, 9], [2, 3], False, True),  # two tokens of one score
        ([1, 2, 9], [1, 3, 9], [2], False, False),  # theirs has a token that is worse, or better
        ([1, 2, 9], [1, 2, 3], [2], False, True),  # the last token, in the place of the next best
        ([1, 2, 9], [1, 3, 4], [2, 3], False, True),  # both at once
        ([1, 2, 9], [1, 3, 4], [2], False, False),
        ([1, 2, 9], [1, 2], [2, 9], False, False),  # not as many
    ],
)
def test_kept_sets_differ_by_ties_and_the_last_token_alone(
    ours: list[int], theirs: list[int], ties: list[int], equal: bool, explained: bool
) -> None:
    found = compare_kept([(told(ours, ties), told(theirs))], tokens=10)
    assert found == {
        "rows": 1,
        "equal": equal,
        "explained": explained,
        "shared": pytest.approx(len({*ours} & {*theirs}) / len(ours)),
    }


class Scripted:
    """A side that answers from a script, and notes who asked when."""

    def __init__(self, name: str, log: list[str], seconds: float = 1.0) -> None:
        self.name, self.log, self.seconds = name, log, seconds
        self.asked: list[Request] = []
        self.waiting: list[Request] = []
        self.right: Mapping[str, Any] = {}

    def send(self, request: Request) -> None:
        self.waiting.append(request)

    def receive(self) -> Answer:
        request = self.waiting.pop(0)
        self.asked.append(request)
        self.log.append(self.name)
        rows = len(request.prompts)
        kept = [[[[0, 1]]] * rows] if request.wants_kept else None
        step = self.seconds * (1 + len(self.asked))  # each call is slower than the one before
        return Answer(
            ids=[[0] * request.new_tokens] * rows,
            prefill_seconds=step,
            decode_seconds=2 * step * (request.new_tokens - 1),
            num_bytes=100 * rows,
            final_bytes=110 * rows,
            kept=kept,
            tied=kept,
        )

    def ask(self, request: Request) -> Answer:
        assert not self.waiting, "nobody is asked while another works"
        self.send(request)
        return self.receive()


def test_cells_of_accuracy_ask_both_sides_the_same() -> None:
    log: list[str] = []
    sides = {name: Scripted(name, log) for name in (OURS, THEIRS)}
    methods = chosen_methods(["snapkv", "random", "cake"])
    rows = list(accuracy(sides, methods, tasks=["needle_8"], length=128, kept=[16, 32], samples=5, batch=2))
    names = [(row["method"], row["kept"]) for row in rows]
    assert names == [("full", 128), *((name, kept) for kept in (16, 32) for name in ("snapkv", "random", "cake"))]
    for row in rows:
        assert row[OURS]["samples"] == 5
        assert row[OURS]["correct"] == 0
        assert (row[OURS]["num_bytes"], row[OURS]["final_bytes"]) == (100, 110)  # of one prompt
        assert (THEIRS in row) is (row["method"] != "cake")
        assert ("kept_sets" in row) is (row["method"] == "snapkv")
    assert [row["same_answers"] for row in rows if THEIRS in row] == [5] * 5
    both = [request for request in sides[OURS].asked if request.setup is None or request.setup["name"] != "cake"]
    assert [r.prompts for r in both] == [r.prompts for r in sides[THEIRS].asked]
    wanting = [request.wants_kept for request in sides[THEIRS].asked if request.setup]
    assert wanting.count(True) == 2, "one batch of each cell that is compared"


def test_cells_without_the_question_ask_it_afterwards() -> None:
    sides = {name: Scripted(name, []) for name in (OURS, THEIRS)}
    rows = list(
        accuracy(
            sides,
            chosen_methods(["snapkv"]),
            tasks=["needle_8"],
            length=128,
            kept=[16],
            samples=3,
            mode=QUERY_AGNOSTIC,
        )
    )
    example = make_example("needle_8", 128, index=0)
    assert {row["tokens"] for row in rows} == {example.question_start}
    for side in sides.values():
        for request in side.asked:
            assert request.questions is not None
            assert request.prompts[0] + request.questions[0] == example.prompt_ids


def test_unknown_mode_is_refused() -> None:
    result = CliRunner().invoke(peers_command(), ["--mode", "aware", "--samples", "1"])
    assert result.exit_code == 2
    assert "mode must be one of query_aware, query_agnostic; got 'aware'" in result.stderr


def peers_command() -> typer.Typer:
    app = typer.Typer()
    app.command()(kvpress.main)
    return app


def test_tables_show_every_cell() -> None:
    sides = {name: Scripted(name, []) for name in (OURS, THEIRS)}
    methods = chosen_methods(["snapkv", "cake"])
    rows = list(accuracy(sides, methods, tasks=["needle_8"], length=128, kept=[16], samples=2))
    rows += speed(sides, methods, task="needle_8", length=128, kept=32, new_tokens=3, rounds=1)
    run = {"cases": rows, "peer": {"kvpress": "0.5.5", "transformers": "5.2.0"}}
    lines = peers_accuracy(run).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["`full`", "`snapkv`", "`cake`"]
    assert "| `snapkv` | 0 [0, 66] | 0 | 0 [0, 66] | 0 | 2 | 2, 2 of 2 |" in lines[3]  # 100 bytes are 0 KiB
    assert lines[4].endswith("| `cake` | 0 [0, 66] | 0 |  |  |  |  |")
    assert peers_speed(run).count("| decode_step | ") == 2


def test_times_are_taken_in_turns_and_compared_round_by_round() -> None:
    log: list[str] = []
    sides = {name: Scripted(name, log, seconds) for name, seconds in ((OURS, 1.0), (THEIRS, 4.0))}
    rows = speed(
        sides, chosen_methods(["snapkv", "cake"]), task="needle_8", length=128, kept=32, new_tokens=5, rounds=3
    )
    assert [(row["method"], row["phase"]) for row in rows] == [
        ("full", "prefill"), ("full", "decode_step"), ("snapkv", "prefill"), ("snapkv", "decode_step")
    ]  # fmt: skip
    assert Counter(log) == {OURS: 2 * 4, THEIRS: 2 * 4}  # a round to warm up
    rounds = [log[start : start + 4] for start in range(0, 16, 4)]
    assert rounds[0] != rounds[1], "each round begins with another one"
    for row in rows:
        assert row["repeats"] == 3
        assert row["ratio"]["median"] < 1
    # Calls of one side take 1, 2, ... times as long; only medians of ratios of one round come out like this.
    full, compressed = rows[0], rows[2]
    assert full["kvcompress"]["median"] > 0
    assert "kvcompress_to_full" not in full
    assert set(compressed["kvpress_to_full"]) == {"median", "q20", "q80"}
    decode, prefill = rows[3], rows[2]
    assert decode["kvpress"]["median"] == pytest.approx(2 * prefill["kvpress"]["median"])


@pytest.mark.parametrize(("rounds", "new_tokens"), [(0, 5), (1, 1)])
def test_nothing_to_time_is_refused(rounds: int, new_tokens: int) -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1 and new_tokens at least 2"):
        speed({}, {}, task="needle_8", length=128, kept=32, new_tokens=new_tokens, rounds=rounds)
