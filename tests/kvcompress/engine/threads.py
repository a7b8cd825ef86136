"""Generations in several threads."""

import threading

import torch
from transformers import PreTrainedModel

from tests.kvcompress.engine.helpers import LONG, MEDIUM, SHORT, greedy, prompt
from tests.kvcompress.engine.policies import new_cache


def check_generates_at_once(model: PreTrainedModel) -> None:
    """Checks that generations in threads of their own give what each gives alone."""
    jobs = [("cake", prompt(LONG), 30), ("snapkv", prompt(MEDIUM, 2), 30), ("full", prompt(SHORT, 3), 30)]
    jobs = [(name, ids.to(model.device), steps) for name, ids, steps in jobs]
    expected = [greedy(model, new_cache(model, name), ids, steps=steps) for name, ids, steps in jobs]
    found: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        name, ids, steps = jobs[index]
        found[index] = greedy(model, new_cache(model, name), ids, steps=steps)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, tokens in enumerate(expected):
        torch.testing.assert_close(found[index], tokens)
