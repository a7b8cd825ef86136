"""Case of a whole model with random weights: prefill and decoding, compressed and with the full cache."""

from __future__ import annotations

from time import perf_counter

import torch
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM

from kvcompress import CakeCache
from kvcompress.bench.measure import Case, CaseRow, Clock, Contender, measure, relative_error
from kvcompress.engine.cache_argument import cache_argument

_CACHE_SIZE = 1024


def random_model(*, quick: bool) -> LlamaForCausalLM:
    """4 layers, width 1024, 16 query and 4 kv heads of dimension 64; weights drawn, float32."""
    torch.manual_seed(0)
    width = 128 if quick else 1024
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=width // 16,
        max_position_embeddings=1 << 15,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


@torch.inference_mode()
def end_to_end(*, quick: bool, clock: Clock = perf_counter) -> list[CaseRow]:
    """Prefill of a long prompt, then single tokens; the same model and prompt for both caches."""
    tokens = 512 if quick else 8192
    model = random_model(quick=quick)
    prompt = torch.randint(1024, (1, tokens), generator=torch.Generator().manual_seed(0))
    return [
        *_prefill(model, prompt, repeats=2 if quick else 4, clock=clock),
        *_decode(model, prompt, repeats=3 if quick else 48, clock=clock),
    ]


def _compressed(model: LlamaForCausalLM, tokens: int) -> CakeCache:
    return CakeCache(model, min(_CACHE_SIZE, tokens // 4))


def _run(model: LlamaForCausalLM, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Logits of the last token, ``[1, 1, vocabulary]``."""
    logits: torch.Tensor = model(input_ids=ids, **cache_argument(cache), use_cache=True, logits_to_keep=1).logits
    return logits


def _shape(tokens: int, model: LlamaForCausalLM) -> str:
    config = model.config
    return (
        f"{tokens} tokens, cache {min(_CACHE_SIZE, tokens // 4)}, {config.num_hidden_layers} layers, width "
        f"{config.hidden_size}, {config.num_attention_heads}/{config.num_key_value_heads} heads"
    )


def _prefill(model: LlamaForCausalLM, prompt: torch.Tensor, repeats: int, clock: Clock) -> list[CaseRow]:
    """The prompt; its logits must be the full cache's, for a block attends before anything is evicted."""
    tokens = prompt.shape[1]
    expected = _run(model, prompt, DynamicCache(config=model.config)).double()
    contenders = [
        Contender(
            provider="kvcompress",
            run=lambda: _run(model, prompt, _compressed(model, tokens)),
            error=lambda: relative_error(_run(model, prompt, _compressed(model, tokens)), expected),
        ),
        Contender(provider="dynamic_cache_sdpa", run=lambda: _run(model, prompt, DynamicCache(config=model.config))),
    ]
    case = Case(name="prefill_model", shape=_shape(tokens, model), ratio_to="dynamic_cache_sdpa")
    return measure(case, contenders, repeats=repeats, warm_up=0, clock=clock)  # the check has run both


def _decode(model: LlamaForCausalLM, prompt: torch.Tensor, repeats: int, clock: Clock) -> list[CaseRow]:
    """Single tokens after the prompt. There is no error to state: the results differ on purpose."""
    caches: dict[str, Cache] = {
        "kvcompress": _compressed(model, prompt.shape[1]),
        "dynamic_cache_sdpa": DynamicCache(config=model.config),
    }
    token = prompt[:, :1]
    contenders = []
    for provider, cache in caches.items():
        _run(model, prompt, cache)
        contenders.append(Contender(provider=provider, run=lambda cache=cache: _run(model, token, cache)))  # type: ignore[misc]
    case = Case(name="decode_model", shape=_shape(prompt.shape[1], model))
    return measure(case, contenders, repeats=repeats, clock=clock)
