"""Exact-match accuracy of a model with its full cache."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from kvcompress.bench.testbed.tasks import Example, get_task, is_correct, make_example
from kvcompress.bench.testbed.vocabulary import PAD_ID


def _teacher_forced(model: LlamaForCausalLM, prompts: Tensor, examples: list[Example]) -> list[bool]:
    """Judge in one forward pass: right if each answer id is the argmax given all true ids before it.

    This is greedy decoding's exact match: as long as all ids were right, decoding has seen the same ids,
    and at the first wrong one both say wrong.
    """
    answers = torch.tensor([example.answer_ids for example in examples])
    inputs = torch.cat((prompts, answers[:, :-1]), dim=1)
    output = model(input_ids=inputs, use_cache=False, logits_to_keep=answers.shape[1])
    hits = cast(Tensor, output.logits).argmax(dim=-1).eq(answers).all(dim=1)
    return [bool(hit) for hit in hits.tolist()]


def _decoded(model: LlamaForCausalLM, prompts: Tensor, examples: list[Example]) -> list[bool]:
    """Judge by greedy decoding, which a set needs: the order of its values is the model's choice."""
    # Any: transformers types `generate` for a protocol that its own models do not match.
    generated = cast(Any, model).generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=len(examples[0].answer_ids),
        do_sample=False,
        pad_token_id=PAD_ID,
    )
    new_ids = generated[:, prompts.shape[1] :].tolist()
    return [is_correct(example, ids) for example, ids in zip(examples, new_ids, strict=True)]


@torch.inference_mode()
def count_correct(
    model: LlamaForCausalLM, task: str, length: int, *, samples: int, seed: int = 0, batch_tokens: int = 2048
) -> int:
    """Return how many examples the model answers exactly, with its full cache and greedy decoding.

    Args:
        model: the model, in evaluation mode, on the CPU.
        task: name in `TASKS`.
        length: ids of each prompt.
        samples: number of examples, the first ones of the set.
        seed: which set of examples.
        batch_tokens: prompt ids put through the model at a time; few, so that activations stay in the caches.

    Returns:
        The number of examples answered right.

    Raises:
        ValueError: if the task is unknown or the length out of range.
    """
    judge = _decoded if get_task(task).is_set else _teacher_forced
    examples = [make_example(task, length, seed=seed, index=index) for index in range(samples)]
    rows = max(1, batch_tokens // length)
    correct = 0
    for start in range(0, samples, rows):
        part = examples[start : start + rows]
        prompts = torch.tensor([example.prompt_ids for example in part])
        correct += sum(judge(model, prompts, part))
    return correct
