"""The history of a run: maps against the model's own attention, files, and what the analysis makes of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from kvcompress.analysis.plots.saving import save_png
from kvcompress.bench.workloads.diffusion_lm.history import (
    FILE_NAME,
    History,
    HistoryKeeper,
    read_history,
    write_history,
)
from kvcompress.bench.workloads.diffusion_lm.history_analysis import analysis_of, evolution, influence, restrict
from kvcompress.bench.workloads.diffusion_lm.pictures import PICTURES
from kvcompress.bench.workloads.diffusion_lm.sampler import sample
from kvcompress.bench.workloads.diffusion_lm.sampling_settings import SamplingSettings

MASK, PROMPT = 1, 11
SETTINGS = SamplingSettings(gen_length=8, steps=4, block_length=4)
TOKENS = [f"<t{place}>$" for place in range(PROMPT + 8)]


def record(model: nn.Module, prompts: Tensor) -> History:
    keeper = HistoryKeeper(model)
    with keeper:
        sample(model, prompts, SETTINGS, mask_id=MASK, listeners=[keeper])
    return keeper.history(prompt_length=PROMPT, mask_id=MASK, tokens=TOKENS)


def test_maps_are_the_models_own_attention(model: PreTrainedModel, prompts: Tensor) -> None:
    history = record(model, prompts)
    canvas = torch.cat((prompts[:1], torch.full((1, 8), MASK)), dim=1)
    model.set_attn_implementation("eager")
    for step in range(SETTINGS.steps):
        attentions = model(input_ids=canvas, output_attentions=True).attentions
        for layer, attention in enumerate(attentions):
            torch.testing.assert_close(history.maps[f"layer_{layer}"][step], attention[0].mean(0), atol=1e-3, rtol=1e-3)
        canvas = history.canvas[step][None]
    assert history.blocks.tolist() == [0, 0, 1, 1]


def test_recording_changes_nothing(model: PreTrainedModel, prompts: Tensor) -> None:
    plain = sample(model, prompts, SETTINGS, mask_id=MASK)
    assert torch.equal(record(model, prompts).canvas[-1], plain.ids[0])


class Foreign(nn.Module):
    """A model of no library that calls `scaled_dot_product_attention` itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(19, 8)
        self.out = nn.Linear(8, 19)

    def forward(self, input_ids: Tensor) -> MaskedLMOutput:
        hidden = self.embedding(input_ids)[:, None]
        attended = nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)
        return MaskedLMOutput(logits=self.out((hidden + attended)[:, 0]))


def test_models_of_no_library_are_recorded(prompts: Tensor) -> None:
    model = Foreign().eval()
    history = record(model, prompts)
    hidden = model.embedding(torch.cat((prompts[:1], torch.full((1, 8), MASK)), dim=1))[0]
    expected = (hidden @ hidden.T / 8**0.5).softmax(-1)
    torch.testing.assert_close(history.maps["layer_0"][0], expected.detach(), atol=1e-3, rtol=1e-3)


def test_filled_at_names_the_step_that_filled_each_token(model: PreTrainedModel, prompts: Tensor) -> None:
    history = record(model, prompts)
    filled = history.filled_at()
    for place, step in enumerate(filled.tolist()):
        states = history.canvas[:, PROMPT + place]
        assert bool((states[:step] == MASK).all())
        assert not bool((states[step:] == MASK).any())


def test_a_history_comes_back_from_its_file(model: PreTrainedModel, prompts: Tensor, tmp_path: Path) -> None:
    history = record(model, prompts)
    write_history(history, tmp_path)
    back = read_history(tmp_path)
    assert back.tokens == tuple(TOKENS)
    assert (back.prompt_length, back.mask_id) == (PROMPT, MASK)
    for name in ("canvas", "confidence", "blocks"):
        torch.testing.assert_close(getattr(back, name), getattr(history, name), atol=0, rtol=0, equal_nan=True)
    assert back.maps.keys() == history.maps.keys()
    for name, maps in history.maps.items():
        assert torch.equal(back.maps[name], maps)


def test_files_that_are_no_history_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--save-history"):
        read_history(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is damaged"):
        read_history(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match="must have the schema"):
        read_history(tmp_path)
    about = json.dumps({"schema": "kvcompress.diffusion_history/1"})
    save_file({"x": torch.zeros(1)}, tmp_path / FILE_NAME, metadata={"about": about})
    with pytest.raises(ValueError, match="is damaged"):
        read_history(tmp_path)


def made(maps: Tensor, prompt: int) -> History:
    """A history of one layer with given maps [S, T, T]."""
    steps, tokens = maps.shape[:2]
    return History(
        maps={"layer_0": maps},
        canvas=torch.zeros(steps, tokens, dtype=torch.int64),
        confidence=torch.ones(steps, 2),
        blocks=torch.zeros(steps, dtype=torch.int64),
        prompt_length=prompt,
        mask_id=MASK,
        tokens=tuple(f"t{place}" for place in range(tokens)),
    )


def test_evolution_and_influence_of_maps_that_are_known() -> None:
    # At first everybody looks at token 0, then at himself.
    first = torch.zeros(4, 4)
    first[:, 0] = 1.0
    history = made(torch.stack((first, torch.eye(4))), prompt=3)
    over_steps = evolution(history)
    assert over_steps.moved.tolist() == [[0.75]]
    assert over_steps.coverage.tolist() == [[1.0, 1.0]]
    assert over_steps.to_prompt.tolist() == [[1.0, 0.0]]
    assert over_steps.from_prompt.tolist() == [[0.0, 0.0]]
    from_generated, received = influence(history)
    assert from_generated.tolist() == [0.5, 0.0, 0.0]
    assert received.tolist() == [0.625, 0.125, 0.125, 0.125]


def test_restricting_keeps_the_tokens_around_the_boundary(model: PreTrainedModel, prompts: Tensor) -> None:
    history = record(model, prompts)
    part = restrict(history, max_layers=1, max_tokens=6, prompt_length=None)
    assert list(part.maps) == ["layer_0"]
    assert part.tokens == tuple(TOKENS[8:14])
    assert (part.prompt_length, part.first_token) == (3, 8)
    assert torch.equal(part.maps["layer_0"], history.maps["layer_0"][:, 8:14, 8:14])
    moved = restrict(history, max_layers=None, max_tokens=None, prompt_length=4)
    assert moved.prompt_length == 4
    assert moved.canvas.shape == history.canvas.shape


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt_length": 19}, r"prompt_length must be in \[1, 19\)"),
        ({"prompt_length": 0}, r"prompt_length must be in \[1, 19\)"),
        ({"max_layers": 0}, "max_layers must be at least 1"),
        ({"max_tokens": 1}, "max_tokens must be at least 2"),
    ],
)
def test_restrictions_out_of_range_are_refused(
    model: PreTrainedModel, prompts: Tensor, values: dict[str, int], message: str
) -> None:
    everything: dict[str, int | None] = {"max_layers": None, "max_tokens": None, "prompt_length": None}
    with pytest.raises(ValueError, match=message):
        restrict(record(model, prompts), **{**everything, **values})


def test_the_analysis_is_json_and_says_what_the_measures_say(model: PreTrainedModel, prompts: Tensor) -> None:
    history = record(model, prompts)
    content = json.loads(json.dumps(analysis_of(history), allow_nan=False))
    assert content["filled_at_step"] == history.filled_at().tolist()
    cross = content["token_influence"]["cross_mass"]
    mean = torch.stack([maps.double().mean(0) for maps in history.maps.values()]).mean(0)
    assert cross["generated_to_prompt"] == pytest.approx(float(mean[PROMPT:, :PROMPT].sum(1).mean()), abs=1e-6)
    assert content["evolution"]["moved_to_next"][0] == pytest.approx(evolution(history).moved[0].tolist())


def test_pictures_are_drawn_of_any_history(untrained: PreTrainedModel, prompts: Tensor, tmp_path: Path) -> None:
    history = record(untrained, 2 + prompts % 14)
    one_step = replace(
        history,
        maps={layer: maps[:1] for layer, maps in history.maps.items()},
        canvas=history.canvas[:1],
        confidence=history.confidence[:1],
        blocks=history.blocks[:1],
    )
    for name, draw in PICTURES.items():
        assert save_png(draw(history), tmp_path / f"{name}.png").stat().st_size > 10_000
        assert save_png(draw(one_step), tmp_path / f"{name}_one_step.png").stat().st_size > 10_000
