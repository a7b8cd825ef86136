"""An agent without a cache: it reads its history again at every step, all of it or the last steps."""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from kvcompress.bench.workloads.algorithm_distillation.history_length import check_length
from kvcompress.bench.workloads.algorithm_distillation.rollout import action_logits
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import BOS_ID, TOKENS_PER_STEP


class RereadingAgent:
    """Reads the history from its beginning, or a window of it, at every step.

    This is how Algorithm Distillation is evaluated by its authors (arXiv 2210.14215): the context holds the latest
    steps, and nothing is kept between two of the agent's choices.

    Attributes:
        model: a decoder over the vocabulary.
        window_steps: whole steps that are read, the latest ones; `None` for all.
    """

    def __init__(self, model: LlamaForCausalLM, window_steps: int | None = None) -> None:
        """Set the agent up.

        Args:
            model: in evaluation mode, on the CPU.
            window_steps: at least 1; `None` for the whole history.

        Raises:
            ValueError: if `window_steps` is below 1.
        """
        if window_steps is not None and window_steps < 1:
            raise ValueError(f"window_steps must be at least 1, got {window_steps}; None reads everything")
        self.model = model
        self.window_steps = window_steps
        self._history = torch.empty(0, 0, dtype=torch.int64)

    @property
    def held_tokens(self) -> float:
        """Tokens that are read at each step."""
        return float(self._history.shape[1])

    def begin(self, rooms: int) -> None:
        """Forget everything."""
        self._history = torch.empty(rooms, 0, dtype=torch.int64)

    def note(self, ids: Tensor) -> None:
        """Take in new tokens, int64 [rooms, new], without reading the history: somebody else has chosen."""
        history = torch.cat((self._history, ids), dim=1)
        if self.window_steps is not None:
            # `<bos>`, whole steps, and the cell that the agent is in.
            longest = 1 + TOKENS_PER_STEP * self.window_steps + 1
            if history.shape[1] > longest:
                bos = torch.full((len(history), 1), BOS_ID)
                history = torch.cat((bos, history[:, 1 - longest :]), dim=1)
        check_length(self.model, history.shape[1])
        self._history = history

    def observe(self, ids: Tensor) -> Tensor:
        """Read the history with the new tokens at its end; see `Agent.observe`."""
        self.note(ids)
        output = self.model(input_ids=self._history, use_cache=False, logits_to_keep=1)
        return action_logits(output.logits[:, -1])
