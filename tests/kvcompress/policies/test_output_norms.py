"""Norms of values after the output projection."""

import pytest
import torch

from kvcompress import UnsupportedModelError
from kvcompress.policies.output_norms import output_norms


def test_output_norms_in_chunks_and_of_other_names(monkeypatch) -> None:
    monkeypatch.setattr("kvcompress.policies.output_norms._CHUNK_ELEMENTS", 32 * 2 * 7)
    attention_module = torch.nn.Module()
    attention_module.dense = torch.nn.Linear(4 * 6, 32, bias=False)
    values = torch.randn(1, 2, 50, 6)
    got = output_norms(attention_module, 4, values, 45)
    part = attention_module.dense.weight.view(32, 2, 2, 6)
    wanted = torch.einsum("bhnd,ohgd->bhgno", values, part)[:, :, :, :45].abs().sum(-1).mean(2)
    torch.testing.assert_close(got, wanted)


def test_models_without_an_output_projection_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="o_proj, dense"):
        output_norms(torch.nn.Module(), 4, torch.zeros(1, 2, 3, 6), 2)
