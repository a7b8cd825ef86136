"""Influence of tokens, against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.analysis.metrics import influence
from kvcompress.analysis.metrics.inputs import causal_mask
from tests.analysis.metrics.maps import random_attention
from tests.tolerances import assert_close


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
@pytest.mark.parametrize("prompt", [1, 5, 11])
def test_every_metric_is_the_plain_formula(prompt: int, causal: bool) -> None:
    n = 12
    values = random_attention(2, n, n, causal=causal)
    for head in range(2):
        p = values[head].tolist()
        generated = range(prompt, n)
        of_prompt = [sum(p[i][j] for i in generated) / len(generated) for j in range(prompt)]
        assert influence.influence_of_prompt(values, prompt)[head].tolist() == pytest.approx(of_prompt)
        paid = [sum(p[i][j] for j in range(n) if j != i) for i in range(n)]
        assert influence.influence_paid(values)[head].tolist() == pytest.approx(paid, abs=1e-12)
        observers = [sum(1 for i in range(n) if i >= j or not causal) for j in range(n)]
        received = [sum(p[i][j] for i in range(n)) / observers[j] for j in range(n)]
        seen = causal_mask(n, n) if causal else None
        assert influence.influence_received(values, seen)[head].tolist() == pytest.approx(received)
        near = [sum(p[i][j] for j in range(n) if prompt - 3 <= j < prompt + 3) for i in generated]
        assert influence.boundary_share(values, prompt, 3)[head].tolist() == pytest.approx(near)


@given(st.integers(2, 20), st.integers(0, 50), st.data())
def test_cross_mass_splits_what_is_paid(tokens: int, seed: int, data: st.DataObject) -> None:
    prompt = data.draw(st.integers(1, tokens - 1))
    values = random_attention(3, tokens, tokens, seed=seed)
    cross = influence.cross_mass(values, prompt)
    assert_close(cross.prompt_to_prompt + cross.prompt_to_generated, torch.ones(3).double())
    assert_close(cross.generated_to_prompt + cross.generated_to_generated, torch.ones(3).double())
    assert_close(cross.generated_to_prompt, influence.influence_of_prompt(values, prompt).sum(-1))
    assert all(bool(((part >= 0) & (part <= 1 + 1e-12)).all()) for part in cross)


def test_causal_prompt_pays_nothing_to_what_comes() -> None:
    cross = influence.cross_mass(random_attention(2, 9, 9, causal=True), 4)
    assert cross.prompt_to_generated.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("prompt", [0, -1, 12, 100])
def test_prompt_length_out_of_range(prompt: int) -> None:
    values = random_attention(12, 12)
    for function in (influence.influence_of_prompt, influence.cross_mass, influence.boundary_share):
        with pytest.raises(ValueError, match=r"prompt_length must be in \[1, 12\)"):
            function(values, prompt)


def test_rows_of_single_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 queries and 12 keys"):
        influence.influence_of_prompt(random_attention(1, 12), 5)
    with pytest.raises(ValueError, match="width must be at least 1"):
        influence.boundary_share(random_attention(12, 12), 5, 0)
