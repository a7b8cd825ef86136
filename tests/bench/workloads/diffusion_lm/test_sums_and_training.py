"""Sums, masking, loss, schedule, and a training run that can be interrupted."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from kvcompress.bench.workloads.diffusion_lm.architecture import build_model
from kvcompress.bench.workloads.diffusion_lm.location import load_diffusion_model
from kvcompress.bench.workloads.diffusion_lm.masking import diffusion_loss, hide_block, mask_answers
from kvcompress.bench.workloads.diffusion_lm.settings import Settings, hidden_block, rate_factor, zeros_of_step
from kvcompress.bench.workloads.diffusion_lm.sums import DIGITS, PROMPT_LENGTH, make_sums
from kvcompress.bench.workloads.diffusion_lm.tokenizer import build_tokenizer
from kvcompress.bench.workloads.diffusion_lm.train import train
from kvcompress.bench.workloads.diffusion_lm.trainer import LOG_NAME
from kvcompress.bench.workloads.diffusion_lm.vocabulary import FIRST_DIGIT_ID, MASK_ID, WORDS
from tests.tolerances import assert_close

QUICK = Settings(steps=4, rows=2, check_sums=1)


def number(ids: Tensor) -> int:
    """The number that digits stand for, lowest value first."""
    return sum(digit * 10**place for place, digit in enumerate((ids - FIRST_DIGIT_ID).tolist()))


@given(seed=st.integers(0, 2**40), nines=st.floats(0, 1), zeros=st.floats(0, 1))
def test_answers_are_the_sums_of_the_prompts(seed: int, nines: float, zeros: float) -> None:
    sums = make_sums(2, seed=seed, nines=nines, zeros=zeros)
    assert sums.prompts.shape == (2, PROMPT_LENGTH)
    for prompt, answer in zip(sums.prompts, sums.answers, strict=True):
        words = [WORDS[token] for token in prompt.tolist()]
        assert (words[0], words[1 + DIGITS], words[-1]) == ("add", "plus", "equals")
        first, second = prompt[1 : 1 + DIGITS], prompt[2 + DIGITS : 2 + 2 * DIGITS]
        assert number(answer) == (number(first) + number(second)) % 10**DIGITS


def test_shares_of_nines_and_zeros_are_as_asked() -> None:
    def digits(nines: float, zeros: float) -> tuple[Tensor, Tensor]:
        prompts = make_sums(200, seed=1, nines=nines, zeros=zeros).prompts - FIRST_DIGIT_ID
        return prompts[:, 1 : 1 + DIGITS], prompts[:, 2 + DIGITS : 2 + 2 * DIGITS]

    first, second = digits(0.5, 0.0)
    assert float((first + second == 9).float().mean()) == pytest.approx(0.5 + 0.05, abs=0.02)
    first, second = digits(0.0, 0.6)
    # One of both was zeroed in 1 - 0.7^2 of the places; in the others a digit is zero by chance in 0.19.
    assert float(((first == 0) | (second == 0)).float().mean()) == pytest.approx(0.51 + 0.49 * 0.19, abs=0.02)


def test_the_same_seed_gives_the_same_sums() -> None:
    assert torch.equal(make_sums(3, seed=7).prompts, make_sums(3, seed=7).prompts)
    assert not torch.equal(make_sums(3, seed=7).prompts, make_sums(3, seed=8).prompts)


@pytest.mark.parametrize("values", [{"rows": 0}, {"rows": 1, "nines": 1.5}, {"rows": 1, "zeros": -0.1}])
def test_shares_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rows must be at least 1, nines and zeros shares"):
        make_sums(int(values.pop("rows")), seed=0, **values)


def test_the_tokenizer_has_the_ids_of_the_vocabulary() -> None:
    tokenizer = build_tokenizer()
    sums = make_sums(1, seed=0)
    text = tokenizer.decode(sums.prompts[0].tolist())
    assert text.startswith("add ")
    assert tokenizer(text)["input_ids"] == sums.prompts[0].tolist()
    assert tokenizer.mask_token_id == MASK_ID


def test_answers_alone_are_masked_with_every_ratio() -> None:
    sums = make_sums(64, seed=0)
    masked = mask_answers(sums, Generator().manual_seed(0))
    assert torch.equal(masked.input_ids[:, :PROMPT_LENGTH], sums.prompts)
    answers = masked.input_ids[:, PROMPT_LENGTH:]
    assert torch.equal(answers, sums.answers.masked_fill(masked.masked, MASK_ID))
    spaced = masked.ratios.sort().values.diff()
    assert float(spaced.max()) < 2 / 64  # one offset, so that the ratios cover (0, 1) evenly
    shares = masked.masked.float().mean(1)
    assert float((shares - masked.ratios).abs().max()) < 5 * 0.5 / DIGITS**0.5


@torch.inference_mode()
def test_the_loss_is_cross_entropy_over_the_ratio(untrained: PreTrainedModel) -> None:
    sums = make_sums(2, seed=0)
    masked = mask_answers(sums, Generator().manual_seed(0))
    loss, outcome = diffusion_loss(untrained, masked, sums.answers)
    with torch.autocast("cpu", torch.bfloat16):
        logits = untrained(input_ids=masked.input_ids).logits[:, PROMPT_LENGTH:].double()
    each = F.cross_entropy(logits.flatten(0, 1), sums.answers.flatten(), reduction="none").view(2, DIGITS)
    expected = (each * masked.masked / masked.ratios[:, None].double()).sum() / (2 * DIGITS)
    assert_close(loss, expected, torch.bfloat16)
    assert torch.equal(outcome >= 0, masked.masked)


def test_a_hidden_block_is_seen_by_itself_alone() -> None:
    visible = hide_block(10, slice(4, 6))["full_attention"][0, 0]
    for query in range(10):
        for key in range(10):
            assert bool(visible[query, key]) == (query in (4, 5) or key not in (4, 5))


@torch.inference_mode()
def test_other_tokens_do_not_know_a_hidden_block(untrained: PreTrainedModel) -> None:
    sums = make_sums(2, seed=0)
    ids = torch.cat((sums.prompts, sums.answers), dim=1)
    other = ids.clone()
    block = slice(PROMPT_LENGTH + 8, PROMPT_LENGTH + 16)
    other[:, block] = MASK_ID
    mask = hide_block(ids.shape[1], block)
    first, second = (untrained(input_ids=each, attention_mask=mask).logits for each in (ids, other))
    outside = torch.ones(ids.shape[1], dtype=torch.bool)
    outside[block] = False
    assert_close(first[:, outside], second[:, outside].double())
    assert not torch.allclose(first[:, block], second[:, block])


def test_the_schedule_goes_from_easy_to_hard() -> None:
    settings = Settings(steps=1000)
    zeros = [zeros_of_step(settings, step) for step in range(1000)]
    assert zeros[0] == 0.8
    assert zeros[500] == zeros[-1] == 0.0
    assert zeros == sorted(zeros, reverse=True)
    blocks = [hidden_block(settings, step) for step in range(1000)]
    assert blocks[:250] == [None] * 250
    hidden = [block for block in blocks[250:] if block is not None]
    assert 0.4 < len(hidden) / 750 < 0.6
    assert {block.start for block in hidden} == set(range(PROMPT_LENGTH, PROMPT_LENGTH + DIGITS, 8))
    rates = [rate_factor(settings, step) for step in range(1000)]
    assert max(rates) == 1.0
    assert max(rates[0], rates[-1]) < 0.1


@pytest.mark.parametrize("name", ["steps", "rows", "check_sums"])
def test_settings_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        Settings(**{name: 0})


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(QUICK, whole, minutes=5, resume=False)
    starts = 1
    assert not train(QUICK, parts, minutes=0, resume=False)
    while not train(QUICK, parts, minutes=0, resume=True):
        starts += 1
    assert starts >= 2
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (whole, parts))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert weight.dtype == torch.float16
        assert torch.equal(weight, second[name]), name
    logs = [(folder / LOG_NAME).read_text(encoding="utf-8").splitlines() for folder in (whole, parts)]
    kinds = [[json.loads(line)["kind"] for line in log] for log in logs]
    assert kinds[0] == kinds[1] == ["training", "check"]
    model, tokenizer = load_diffusion_model(whole / "model")
    assert type(model) is type(build_model(0))
    assert tokenizer.mask_token_id == MASK_ID


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        train(QUICK, tmp_path, minutes=1, resume=True)
    with pytest.raises(FileNotFoundError, match="diffusion train"):
        load_diffusion_model(tmp_path)
