"""The log-sum-exp that attention computes anyway is heard, is right, and changes nothing but the time."""

import copy
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from kvcompress import CompressedCache, SnapKV
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.engine.log_sum_exp import overhear_log_sum_exp
from kvcompress.engine.score import LayerScores, ScoreInputs
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import LONG, left_padded, prompt

SHAPE = (2, 8, 70)


def tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, 8, 70, 16, dtype=dtype), *torch.randn(2, 2, 2, 70, 16, dtype=dtype).unbind()


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, None]:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True, scale=0.3), None


def definition(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    logits = query.double() @ key.double().repeat_interleave(4, dim=1).transpose(-1, -2) * 0.3
    return logits.masked_fill(~torch.ones(70, 70, dtype=torch.bool).tril(), -torch.inf).logsumexp(-1)


# The CPU's fused attention rounds logits of 16-bit inputs; on a GPU they stay in float32.
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-4)])
@pytest.mark.parametrize("inference", [False, True])
def test_it_is_the_log_sum_exp_of_the_logits(dtype, atol, inference) -> None:
    query, key, value = tensors(dtype)
    with torch.inference_mode(inference), torch.no_grad():
        (output, weights), heard = overhear_log_sum_exp(lambda: sdpa(query, key, value), SHAPE)
    assert weights is None
    assert torch.equal(output, sdpa(query, key, value)[0])
    assert heard is not None
    torch.testing.assert_close(heard.double(), definition(query, key), atol=atol, rtol=0)


FUSED_ON_GPU = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


@pytest.mark.gpu
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("backend", FUSED_ON_GPU, ids=lambda backend: backend.name.lower())
def test_every_fused_attention_of_a_gpu_is_heard(backend, inference) -> None:
    query, key, value = (torch.randn(2, 8, 700, 64, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    logits = query.double() @ key.double().transpose(-1, -2) * 0.3
    hidden = ~torch.ones(700, 700, dtype=torch.bool, device="cuda").tril()
    exact = logits.masked_fill(hidden, -torch.inf).logsumexp(-1)

    def attend() -> tuple[torch.Tensor, None]:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3), None

    with sdpa_kernel(backend), torch.inference_mode(inference), torch.no_grad():
        (output, _), heard = overhear_log_sum_exp(attend, (2, 8, 700))
        plain = attend()[0]
    assert heard is not None
    torch.testing.assert_close(heard.double(), exact, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(output, plain, atol=1e-3, rtol=2**-7)  # a library may round otherwise


@pytest.mark.gpu
def test_what_a_gpu_chooses_by_itself_is_heard() -> None:
    model = copy.deepcopy(shared_model("llama")).to("cuda", torch.bfloat16)
    assert all(spied(model, prompt(LONG).cuda()).given)


def test_an_attention_without_one_gives_none() -> None:
    query, key, value = tensors()
    with sdpa_kernel(SDPBackend.MATH):
        (output, _), heard = overhear_log_sum_exp(lambda: sdpa(query, key, value), SHAPE)
    assert heard is None
    torch.testing.assert_close(output, sdpa(query, key, value)[0])


def test_two_attentions_give_none() -> None:
    query, key, value = tensors()

    def twice() -> tuple[torch.Tensor, None]:
        return sdpa(query, key, value)[0] + sdpa(query, key, value)[0], None

    assert overhear_log_sum_exp(twice, SHAPE)[1] is None


def test_the_package_flash_attn_is_heard() -> None:
    """Its operator is registered as its authors do, with torch inside: the package itself needs a GPU to build."""
    library = torch.library.Library("flash_attn", "FRAGMENT")
    try:
        library.define("_flash_attn_forward(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor, Tensor, Tensor)")

        def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
            output = sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))[0]
            padded = F.pad(definition(q.transpose(1, 2), k.transpose(1, 2)).float(), (0, 58))
            return output.transpose(1, 2).contiguous(), padded, q.new_zeros(0), q.new_zeros(0)

        library.impl("_flash_attn_forward", forward, "CPU")
        query, key, value = tensors()

        def attend() -> tuple[torch.Tensor, None]:
            called = torch.ops.flash_attn._flash_attn_forward
            return called(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))[0], None

        _, heard = overhear_log_sum_exp(attend, SHAPE)
        assert heard is not None
        torch.testing.assert_close(heard.double(), definition(query, key), atol=2e-6, rtol=0)
    finally:
        library._destroy()


@dataclass
class Spy:
    """A scorer that notes what it is given and asks twice: with the given log-sum-exp and without."""

    given: list[bool] = field(default_factory=list)
    differences: list[float] = field(default_factory=list)

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        found = inputs.window_scores()
        self.given.append(inputs.log_sum_exp is not None)
        alone = replace(inputs, log_sum_exp=None).window_scores()
        assert found.score is not None
        assert alone.score is not None
        self.differences.append(float((found.score - alone.score).abs().max() / alone.score.abs().max()))
        return LayerScores(token_scores=found.score, entropy=found.entropy, variance=found.total_variance)


@dataclass(frozen=True, kw_only=True)
class Spied(SnapKV):
    spy: Spy = field(default_factory=Spy)

    @property
    def scorer(self) -> Spy:  # type: ignore[override]
        return self.spy


def spied(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Spy:
    policy = Spied(cache_size=40, window_size=8)
    with torch.no_grad():
        model(ids, attention_mask=mask, **cache_argument(CompressedCache(model, policy)))
    return policy.spy


def test_the_engine_gives_it_to_scorers(llama: PreTrainedModel) -> None:
    spy = spied(llama, prompt(LONG))
    assert spy.given == [True] * len(spy.given)
    assert spy.given
    assert max(spy.differences) < 5e-6


def test_padding_and_learned_sinks_are_scored_without(llama: PreTrainedModel) -> None:
    ids, mask = left_padded([prompt(LONG), prompt(LONG - 30, 1)])
    assert not any(spied(llama, ids, mask).given)
    assert not any(spied(shared_model("gpt-oss"), prompt(LONG)).given)
