"""The example of docs/adding-a-policy.md works as it stands there."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvcompress import CompressedCache, Policy
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.policies.decode_rules import DecodeRule, decode_rule

PAGE = Path(__file__).parents[3] / "docs" / "adding-a-policy.md"


def test_the_example_of_the_page_runs() -> None:
    code = PAGE.read_text().split("```python\n")[1].split("```")[0]
    names = {
        "dataclass": dataclass, "Policy": Policy, "ScoreInputs": ScoreInputs, "LayerScores": LayerScores,
        "DecodeRule": DecodeRule, "decode_rule": decode_rule, "__name__": __name__,
    }  # fmt: skip
    exec(code, names)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    cache = CompressedCache(model, names["Knorm"](cache_size=20, window_size=4))
    keys = []
    cache.add_observer(_Keys(keys))
    with torch.no_grad():
        model(torch.randint(97, (2, 70)), **cache_argument(cache))
    norms = keys[0][:, :, :66].norm(dim=-1)
    wanted = norms.topk(16, dim=-1, largest=False).indices.sort(-1).values
    assert torch.equal(cache.kept_positions(0)[..., :16], wanted)


class _Keys:
    def __init__(self, keys: list[torch.Tensor]) -> None:
        self.keys = keys

    def on_prefill(self, event) -> None:
        self.keys.append(event.keys.clone())

    def on_evict(self, event) -> None:
        pass

    def on_decode(self, event) -> None:
        pass
