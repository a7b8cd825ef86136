"""Samples answered under many policies for one prefill of each.

What a prompt's attention computes does not depend on the policy, and what a scorer gives it does not depend on the
budget: both are done once. For tasks whose samples have one length, as those of the embedded model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from kvcompress import Full, Policy
from kvcompress.analysis.fidelity.conversation import Conversation
from kvcompress.bench.replay import Prefill, record_prefill, replay
from kvcompress.bench.tasks.sample import QUERY_AWARE, Sample
from kvcompress.engine.score import LayerScores, NewToken, ScoreInputs
from kvcompress.policies.base import Wrapper
from kvcompress.policies.h2o import AccumulatedAttention
from kvcompress.policies.protocols import Scorer

Memory = dict[tuple[Scorer, int, int], LayerScores]


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberedScores:
    """A scorer that looks a prompt up before it scores it; later blocks are always scored.

    Args:
        base: the scorer, hashable.
        memory: scores of ONE batch of prompts, by scorer, layer and window.
    """

    base: Scorer
    memory: Memory

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns the base's scores."""
        if inputs.query.shape[2] < inputs.keys.shape[2]:  # held tokens come first: not the prompt
            return self.base(inputs)
        if isinstance(self.base, AccumulatedAttention):
            return self._of_all_queries(inputs)
        return self._remembered(self.base, inputs)

    def _remembered(self, scorer: Scorer, inputs: ScoreInputs) -> LayerScores:
        key = (scorer, inputs.layer_idx, inputs.window)
        if key not in self.memory:
            self.memory[key] = scorer(inputs)
        return self.memory[key]

    def _of_all_queries(self, inputs: ScoreInputs) -> LayerScores:
        """What all queries pay to a token depends on no window: it is added up once for all of them."""
        tokens = inputs.keys.shape[2]
        found = self._remembered(AccumulatedAttention(), replace(inputs, window=0, scored=tokens))
        sums = found.token_scores[..., : inputs.scored]
        shared = cast("AccumulatedAttention", self.base).per_observer
        return LayerScores(token_scores=sums / inputs.observers().clamp(min=1) if shared else sums)

    def score_new(self, new: NewToken) -> torch.Tensor:
        """The base's score of a generated token; only asked for where the base has one."""
        scorer: Any = self.base
        scores: torch.Tensor = scorer.score_new(new)
        return scores


@dataclass(frozen=True, kw_only=True)
class Remembering(Wrapper):
    """Another policy, its prompts scored once for all budgets.

    Args:
        memory: see :class:`RememberedScores`.
    """

    memory: Memory = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The base's."""
        return self.base.name

    @property
    def scorer(self) -> RememberedScores:
        """The base's, with a memory."""
        return RememberedScores(base=self.base.scorer, memory=self.memory)


class Batch:
    """A batch of samples of one task, length and mode, ready to be answered under any policy.

    Args:
        model: the model; every layer of it must be compressed.
        tokenizer: its tokenizer.
        samples: of equal length, with answers of equal length.
        mode: ``"query_aware"`` or ``"query_agnostic"``.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, samples: Sequence[Sample], mode: str) -> None:
        self.model, self.tokenizer, self.samples = model, tokenizer, samples
        self.asked_first = mode == QUERY_AWARE
        first = [sample.turns[0].question_ids if self.asked_first else () for sample in samples]
        prompts = [[*sample.context_ids, *question] for sample, question in zip(samples, first, strict=True)]
        self.prefill: Prefill = record_prefill(model, torch.tensor(prompts))
        self.memory: Memory = {}

    def answer(self, policy: Policy) -> tuple[list[float], int]:
        """Asks all turns under a policy that evicts.

        Returns:
            Each sample's score, the mean over its turns, and the bytes that the cache held in the end, per sample.
        """
        alone = policy.decode_rule.storage_order  # its authors' code as a whole: no wrapper takes it apart
        remembering = policy if alone else Remembering(base=policy, memory=self.memory)
        cache = replay(self.model, self.prefill, remembering)
        return self._talk(Conversation(self.model, cache))

    def answer_in_full(self) -> tuple[list[float], int]:
        """The same with nothing evicted: the yardstick."""
        return self._talk(Conversation(self.model, replay(self.model, self.prefill, Full())))

    def _talk(self, talk: Conversation) -> tuple[list[float], int]:
        totals = [0.0] * len(self.samples)
        last: list[list[int]] = [[] for _ in self.samples]
        for turn in range(len(self.samples[0].turns)):
            if turn == 0 and self.asked_first:
                logits = self.prefill.logits
            else:
                asked = [sample.turns[turn].question_ids for sample in self.samples]
                logits = talk.feed([[*before, *ids] for before, ids in zip(last, asked, strict=True)])
            answers = self._decode(talk, logits, self.samples[0].turns[turn].max_new_tokens)
            last = [ids[-1:] for ids in answers]  # the cache has not seen it
            texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
            for place, (sample, text) in enumerate(zip(self.samples, texts, strict=True)):
                totals[place] += sample.judge(turn, text) / len(sample.turns)
        return totals, talk.num_bytes // len(self.samples)

    def _decode(self, talk: Conversation, logits: torch.Tensor, count: int) -> list[list[int]]:
        ids = [logits.argmax(-1)]
        while len(ids) < count:
            ids.append(talk.step(ids[-1]).argmax(-1))
        rows: list[list[int]] = torch.stack(ids, dim=1).tolist()
        return rows
