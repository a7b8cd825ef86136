"""Training of the testbed: batches, schedule, loss, and a run that can be interrupted."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from kvcompress.bench.testbed.architecture import build_model, save_model
from kvcompress.bench.testbed.checkpoint import Progress, load_checkpoint, save_checkpoint
from kvcompress.bench.testbed.evaluate import evaluate_model, write_evaluation
from kvcompress.bench.testbed.location import load_testbed
from kvcompress.bench.testbed.optimizers import build_optimizers
from kvcompress.bench.testbed.settings import (
    STAGES,
    Settings,
    batch_length,
    rate_factor,
    stage_length,
    task_mix,
)
from kvcompress.bench.testbed.tasks import TASKS
from kvcompress.bench.testbed.train import train
from kvcompress.bench.testbed.trainer import LOG_NAME, batch_loss
from kvcompress.bench.testbed.training_data import EARLY_MIX, FINAL_MIX, TRAINING_TASKS, make_batch
from kvcompress.bench.testbed.vocabulary import BOS_ID, EOS_ID, PAD_ID, VOCABULARY_SIZE

QUICK = Settings(steps=4, processes=1, tokens_per_process=1024, check_samples=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: on a busy machine torch's thread pools make small models many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@given(
    task=st.sampled_from(list(TRAINING_TASKS)),
    length=st.sampled_from([length for length, _ in STAGES]),
    key=st.text("abc", max_size=8),
)
def test_batch_is_full_and_marks_its_answers(task: str, length: int, key: str) -> None:
    batch = make_batch({task: 1.0}, length, 3, key=key)
    assert batch.input_ids.shape == batch.positions.shape == (3, length)
    assert batch.tasks == [task] * 3
    assert bool((batch.input_ids[:, 0] == BOS_ID).all())
    assert bool(((batch.input_ids > PAD_ID) & (batch.input_ids < VOCABULARY_SIZE)).all())
    assert bool((batch.positions.diff(dim=1) >= 1).all())
    assert 0 <= int(batch.positions.min()) <= int(batch.positions.max()) < 4096
    assert not bool(((batch.answer_weights > 0) & (batch.filler_weights > 0)).any())
    # Each answer ends with <eos>, and the weight of its ids is one over the square root of their number.
    ends = batch.input_ids == EOS_ID
    assert bool((batch.answer_weights[ends] > 0).all())
    for weights, questions in zip(batch.answer_weights, ends.sum(dim=1).tolist(), strict=True):
        expected = 0.0 if task == "filler" else questions**-0.5
        torch.testing.assert_close(weights.max(), torch.tensor(expected))


def test_batch_is_fixed_by_its_key() -> None:
    one, same, other = (make_batch(EARLY_MIX, 128, 8, key=key) for key in ("a", "a", "b"))
    assert torch.equal(one.input_ids, same.input_ids)
    assert torch.equal(one.positions, same.positions)
    assert not torch.equal(one.input_ids, other.input_ids)


def test_batch_follows_the_shares() -> None:
    tasks = make_batch(EARLY_MIX, 64, 2000, key="shares").tasks
    for task, share in EARLY_MIX.items():
        assert tasks.count(task) / 2000 == pytest.approx(share / sum(EARLY_MIX.values()), abs=0.04)


def test_schedule_goes_through_all_stages() -> None:
    settings = Settings()
    lengths = [stage_length(settings, step) for step in range(settings.steps)]
    assert lengths == sorted(lengths)
    for length, share in STAGES:
        assert lengths.count(length) == pytest.approx(share * settings.steps, abs=1)
    shorter = [batch_length(settings, step) < length for step, length in enumerate(lengths) if length > 64]
    assert sum(shorter) / len(shorter) == pytest.approx(0.25, abs=0.03)
    assert task_mix(settings, 0) is EARLY_MIX
    assert task_mix(settings, settings.steps - 1) is FINAL_MIX


def test_rate_warms_up_stays_and_falls() -> None:
    settings = Settings(steps=1000)
    assert rate_factor(settings, 0) == pytest.approx(1 / 50)
    assert rate_factor(settings, 50) == rate_factor(settings, 619) == 1.0
    assert rate_factor(settings, 810) == pytest.approx(0.515)
    assert rate_factor(settings, 1000) == pytest.approx(0.03)


@pytest.mark.parametrize("name", ["steps", "processes", "check_samples"])
def test_settings_below_one_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Settings(**{name: 0})


def test_batch_of_wrong_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"multiple of 1024 .*got 2000; take 2048"):
        Settings(tokens_per_process=2000)


def test_loss_is_the_weighted_cross_entropy() -> None:
    model = build_model(0)
    batch = make_batch(FINAL_MIX, 64, 8, key="loss")
    loss, outcome = batch_loss(model, batch, 0.15)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mask = torch.ones_like(batch.input_ids)
        logits = model(input_ids=batch.input_ids, position_ids=batch.positions, attention_mask=mask).logits
    losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), batch.input_ids[:, 1:], reduction="none")
    expected = sum(
        share * (losses * weights[:, 1:]).sum() / weights.sum()
        for share, weights in ((1.0, batch.answer_weights), (0.15, batch.filler_weights))
    )
    # The same bfloat16 products in another shape: rounding may differ in the last of 8 bits, the mean hardly.
    torch.testing.assert_close(loss.detach(), expected, atol=1e-2, rtol=1e-3)
    assert torch.equal(outcome >= 0, batch.answer_weights > 0)
    hits = logits[:, :-1].argmax(dim=-1).eq(batch.input_ids[:, 1:])
    assert int((outcome == 1).sum()) == pytest.approx(int((hits & (outcome[:, 1:] >= 0)).sum()), abs=2)


def test_few_steps_lower_the_loss() -> None:
    model = build_model(0)
    optimizers = build_optimizers(model, Settings())
    batch = make_batch(EARLY_MIX, 64, 8, key="fit")
    losses = []
    for _ in range(5):
        loss, _ = batch_loss(model, batch, 0.15)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_checkpoint_comes_back(tmp_path: Path) -> None:
    model, other = build_model(0), build_model(1)
    optimizers, others = build_optimizers(model, QUICK), build_optimizers(other, QUICK)
    loss, _ = batch_loss(model, make_batch(EARLY_MIX, 64, 2, key="x"), 0.15)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    save_checkpoint(tmp_path, model, optimizers, Progress(step=3, tokens=7, seconds=1.5))
    assert load_checkpoint(tmp_path, other, others) == Progress(step=3, tokens=7, seconds=1.5)
    for name, weight in other.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    for mine, theirs in zip(optimizers, others, strict=True):
        assert str(mine.state_dict()) == str(theirs.state_dict())


def test_resuming_without_checkpoint_is_named(tmp_path: Path) -> None:
    model = build_model(0)
    with pytest.raises(FileNotFoundError, match=r"--resume needs a checkpoint, got none at"):
        load_checkpoint(tmp_path, model, build_optimizers(model, QUICK))


@pytest.mark.slow
def test_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    assert train(QUICK, tmp_path / "whole", minutes=10, resume=False)
    assert not train(QUICK, tmp_path / "parts", minutes=0, resume=False)
    with (tmp_path / "parts" / LOG_NAME).open("a") as log:
        log.write('{"step": 3}\n')  # written after the last checkpoint: to be done, and logged, again
    assert train(QUICK, tmp_path / "parts", minutes=10, resume=True)
    whole, parts = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, parts[name]), name
    (record,) = [json.loads(line) for line in (tmp_path / "parts" / LOG_NAME).read_text().splitlines()]
    assert (record["kind"], record["step"], record["tokens"], record["stage"]) == ("check", 4, 4096, 1024)
    assert set(record["exact_match"]) == set(TASKS)


@pytest.mark.slow
def test_evaluation_of_an_untrained_model(tmp_path: Path) -> None:
    save_model(build_model(0), tmp_path)
    load_testbed(folder=tmp_path)
    evaluation = evaluate_model(tmp_path, samples=2, lengths=[64], processes=1)
    write_evaluation(evaluation, tmp_path / "evaluation.json")
    assert json.loads((tmp_path / "evaluation.json").read_text()) == evaluation
    assert [cell["task"] for cell in evaluation["cells"]] == list(TASKS)
    assert {cell["correct"] for cell in evaluation["cells"]} == {0}


@pytest.mark.parametrize(("samples", "lengths"), [(0, [64]), (1, []), (1, [32]), (1, [64, 5000])])
def test_evaluation_names_what_is_out_of_range(samples: int, lengths: list[int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(samples|lengths) must be .*, got .*; "):
        evaluate_model(tmp_path, samples=samples, lengths=lengths)
