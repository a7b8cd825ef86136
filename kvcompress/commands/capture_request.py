"""What a capture is asked for, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvcompress.commands.choice import PolicyChoice
from kvcompress.commands.failures import CommandError
from kvcompress.commands.lists import indices
from kvcompress.commands.model_names import is_short_name
from kvcompress.commands.runs import Settings
from kvcompress.commands.texts import TextChoice

if TYPE_CHECKING:
    from kvcompress.analysis.capture.settings import RecorderSettings

_CAKE = ("cake", "cake_reference")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRequest:
    """What the user asked for.

    Attributes:
        model: a folder, a hub id, a short name, or None for the embedded model.
        output_dir: folder of the capture.
        texts: which texts.
        max_length: most tokens of a prompt; None: what the model's positions allow.
        settings: how tokens are chosen.
        choice: the policy; None: the full cache.
        recorder: what is stored.
        device: see :func:`kvcompress.commands.loading.choose_place`.
        dtype: see there.
        force: overwrite samples that are there.
    """

    model: str | None
    output_dir: Path
    texts: TextChoice
    max_length: int | None
    settings: Settings
    choice: PolicyChoice | None
    recorder: RecorderSettings
    device: str
    dtype: str
    force: bool


_POLICY_PARAMETERS = (
    *("cache_size", "compression_ratio", "window_size", "sink_tokens"),
    *("tau1", "tau2", "gamma", "base", "floor"),
)


def capture_request(given: Mapping[str, Any]) -> CaptureRequest:
    """The request that the options of ``capture`` or ``run`` make, by the names of their parameters.

    Raises:
        CommandError: options that contradict each other, or cannot be read.
        ValueError: an unknown policy or preset, or a value out of range.
        TypeError: a parameter that the policy does not have.
    """
    return CaptureRequest(
        model=given["model"],
        output_dir=given["output_dir"],
        texts=TextChoice(**{field.name: given[field.name] for field in fields(TextChoice)}),
        max_length=given["max_length"],
        settings=Settings(**{field.name: given[field.name] for field in fields(Settings)}),
        choice=policy_choice(
            {name: given[name] for name in _POLICY_PARAMETERS},
            compress=given["compress"],
            policy=given["policy"],
            preset=given["preset"],
            model=given["model"],
            seed=given["seed"],
        ),
        recorder=recorder_settings(
            max_queries=given["max_queries"],
            save_attention=given["save_attention"],
            layers=given["save_layers"],
            heads=given["save_heads"],
            max_tokens=given["save_max_tokens"],
            save_kv=given["save_kv"],
        ),
        device=given["device"],
        dtype=given["dtype"],
        force=given["force"],
    )


def policy_choice(
    parameters: Mapping[str, Any],
    *,
    compress: bool,
    policy: str | None,
    preset: str | None,
    model: str | None,
    seed: int,
) -> PolicyChoice | None:
    """The policy that the options describe; None without ``--compress``.

    Args:
        parameters: of the policy, by name; None stands for its default.
        compress: whether to compress at all.
        policy: its name; None: cake.
        preset: published temperatures; None: those of a model given by its short name.
        model: what was given to ``--model``.
        seed: of policies that draw.

    Raises:
        CommandError: options of a policy without ``--compress``.
        ValueError: an unknown policy or preset, or a value out of range.
        TypeError: a parameter that the policy does not have.
    """
    if not compress:
        given = [
            name for name, value in {"policy": policy, "preset": preset, **parameters}.items() if value is not None
        ]
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise CommandError(f"{names} must come with --compress; it is not given. Add it, or leave them out.")
        return None
    name = policy or "cake"
    published = model if name in _CAKE and model is not None and is_short_name(model) else None
    choice = PolicyChoice(name, parameters, preset=preset or published, seed=seed)
    choice.check()
    return choice


def recorder_settings(
    *,
    max_queries: int,
    save_attention: bool,
    layers: str | None,
    heads: str | None,
    max_tokens: int | None,
    save_kv: bool,
) -> RecorderSettings:
    """What is stored, as the options say it.

    Raises:
        CommandError: a list that cannot be read, or options of raw attention without ``--save-attention``.
    """
    from kvcompress.analysis.capture.raw import RawRequest
    from kvcompress.analysis.capture.settings import RecorderSettings

    options = {"--save-layers": layers, "--save-heads": heads, "--save-max-tokens": max_tokens}
    given = [name for name, value in options.items() if value is not None]
    if given and not save_attention:
        raise CommandError(f"{', '.join(given)} must come with --save-attention; it is not given. Add it.")
    limit = {} if max_tokens is None else {"max_tokens": max_tokens}
    raw = RawRequest(layers=_indices("--save-layers", layers), heads=_indices("--save-heads", heads), **limit)
    return RecorderSettings(max_queries=max_queries, raw=raw if save_attention else None, save_kv=save_kv)


def _indices(option: str, listed: str | None) -> tuple[int, ...] | None:
    found = indices(option, listed)
    return None if found is None else tuple(found)
