"""The history of a sampling run: what each step filled, and what each layer attended to.

One file, `diffusion_history.safetensors`: `attention.layer_<i>` float16 [S, T, T] (S steps, T tokens; mean over heads),
`canvas` int64 [S, T] (ids after each step), `confidence` float32 [S, block_length] (NaN where no mask was), `block`
int64 [S]; and in its header one JSON text `about` with the schema, the prompt's length, the mask's id, and the texts of
the tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from kvcompress.analysis.capture.hook import AttentionHook
from kvcompress.analysis.files import replacing
from kvcompress.bench.workloads.diffusion_lm.sampler import Step

FILE_NAME: Final = "diffusion_history.safetensors"
SCHEMA: Final = "kvcompress.diffusion_history/1"
_ATTENTION = "attention."


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What `diffusion_history.safetensors` holds.

    Attributes:
        maps: for each layer, by name: attention at each step, mean over heads, float32 [S, T, T].
        canvas: ids after each step, int64 [S, T].
        confidence: probability of the prediction of each mask of the step's block, float32 [S, block_length]; NaN where
            there was none.
        blocks: block of each step, int64 [S].
        prompt_length: tokens of the prompt.
        mask_id: id of the mask token.
        tokens: texts of the tokens in the end.
        first_token: position of the first of the T tokens; above 0 where others were left out.
    """

    maps: dict[str, Tensor]
    canvas: Tensor
    confidence: Tensor
    blocks: Tensor
    prompt_length: int
    mask_id: int
    tokens: tuple[str, ...]
    first_token: int = 0

    @property
    def steps(self) -> int:
        """Steps S."""
        return self.canvas.shape[0]

    def filled_at(self) -> Tensor:
        """Step at which each generated token was filled, int64 [T - prompt_length]."""
        masked = self.canvas[:, self.prompt_length :] == self.mask_id  # [S, G]
        return masked.sum(dim=0)


class HistoryKeeper:
    """A listener of the sampler that keeps the first row's history. Use it as a context.

    Args:
        model: the model that samples; every pass must compute the whole canvas, so no cache may be used.
        layers: indices of the layers whose attention is kept; None: all.
        max_tokens: longest sequence; its maps grow with the square.
    """

    def __init__(self, model: nn.Module, *, layers: Sequence[int] | None = None, max_tokens: int = 1024) -> None:
        self._hook = AttentionHook(model, layers=layers, max_tokens=max_tokens)
        self._maps: dict[str, list[Tensor]] = {}
        self._steps: list[Step] = []

    def __enter__(self) -> "HistoryKeeper":
        """Begin to listen to the model."""
        self._hook.register_hooks()
        return self

    def __exit__(self, *error: object) -> None:
        """End listening."""
        self._hook.remove_hooks()

    def before_step(self, step: int, block: int) -> None:
        """Mark the pass that follows."""
        self._hook.set_generation_context(step=step, block=block)

    def after_step(self, step: Step) -> None:
        """Keep what the step did, and of its attention the mean over heads."""
        self._steps.append(step)
        for name, maps in self._hook.get_attention_maps().items():
            self._maps.setdefault(name, []).append(maps[-1][0].mean(dim=0).half())
        self._hook.clear()

    def history(self, *, prompt_length: int, mask_id: int, tokens: Sequence[str]) -> History:
        """Return what was kept.

        Args:
            prompt_length: tokens of the prompt.
            mask_id: id of the mask token.
            tokens: texts of the tokens in the end.
        """
        return History(
            maps={name: torch.stack(maps).float() for name, maps in self._maps.items()},
            canvas=torch.stack([step.canvas[0].cpu() for step in self._steps]),
            confidence=torch.stack([step.confidence[0].cpu() for step in self._steps]),
            blocks=torch.tensor([step.block for step in self._steps]),
            prompt_length=prompt_length,
            mask_id=mask_id,
            tokens=tuple(tokens),
        )


def write_history(history: History, folder: Path) -> Path:
    """Write a history into a folder, whole or not at all, and return the file.

    Raises:
        OSError: it cannot be written.
    """
    about = {
        "schema": SCHEMA,
        "prompt_length": history.prompt_length,
        "mask_id": history.mask_id,
        "tokens": history.tokens,
    }
    tensors = {_ATTENTION + name: maps.half() for name, maps in history.maps.items()}
    tensors |= {"canvas": history.canvas, "confidence": history.confidence, "block": history.blocks}
    path = folder / FILE_NAME
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(save(tensors, metadata={"about": json.dumps(about)}))
    return path


def read_history(folder: Path) -> History:
    """Read the history of a folder.

    Raises:
        ValueError: there is none, or the file is damaged or something else.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise ValueError(
            f"{folder} must hold {FILE_NAME}, which is not there; make it with "
            "`kvcompress diffusion generate --save-history --output-dir FOLDER`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("about", "{}"))
            if about.get("schema") != SCHEMA:
                raise ValueError(f"{path} must have the schema {SCHEMA!r}, got {about.get('schema')!r}; make it again")
            names = [name for name in file.keys() if name.startswith(_ATTENTION)]  # noqa: SIM118 (not a mapping)
            return History(
                maps={name.removeprefix(_ATTENTION): file.get_tensor(name).float() for name in names},
                canvas=file.get_tensor("canvas"),
                confidence=file.get_tensor("confidence"),
                blocks=file.get_tensor("block"),
                prompt_length=int(about["prompt_length"]),
                mask_id=int(about["mask_id"]),
                tokens=tuple(about["tokens"]),
            )
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); make it again") from error
