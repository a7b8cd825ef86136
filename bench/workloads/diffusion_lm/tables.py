"""The tables of docs/diffusion.md, from the benchmark's JSON alone."""

from kvcompress.bench.table_format import Run, figure, markdown, origin


def diffusion_caching(run: Run) -> str:
    """Accuracy, agreement, tokens, bytes and speed of every sampler, a row per number of steps and cache."""
    rows = []
    for case in run["cases"]:
        held, (low, high) = case["held_bytes"], case["interval_95"]
        rows.append(
            [
                str(case["steps"]),
                case["cache"],
                f"{100 * case['digits_right']:.2f}",
                f"{100 * case['exact_match']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                f"{100 * case['tokens_as_uncached']:.2f}",
                f"{case['tokens_computed']:,}",
                "-" if held is None else f"{held / 1024:.0f}",
                figure(case["median"] / 1e3),
                f"{figure(1 / case['ratio'])} [{figure(1 / case['ratio_q80'])}, {figure(1 / case['ratio_q20'])}]",
            ]
        )
    header = [
        "steps",
        "sampler",
        "digits right, %",
        "sums right, % [95 %]",
        "digits as uncached, %",
        "tokens computed per sum",
        "KiB held per sum",
        "s per batch",
        "times as fast [20 %, 80 %]",
    ]
    first = run["cases"][0]
    note = (
        f"\n{first['sums']} sums that training has not seen: {run['prompt_length']} tokens of prompt, "
        f"{run['gen_length']} generated in blocks of {run['block_length']}. Times are of {run['timed_rows']} sums at a "
        f"time, medians of {first['repeats']} rounds with the samplers in turns.\n"
    )
    return markdown(header, rows, texts=2) + note + origin(run)


def diffusion_training(run: Run) -> str:
    """The checks of the training, and the loss around each."""
    checks = [case for case in run["cases"] if case["kind"] == "check"]
    losses = {case["step"]: case for case in run["cases"] if case["kind"] == "training"}
    rows = []
    for check in checks:
        around = losses[check["step"]]
        rows.append(
            [
                f"{check['step']:,}",
                f"{check['tokens'] / 1e6:.2f}",
                f"{check['seconds'] / 60:.1f}",
                f"{check['zeros']:.2f}",
                f"{around['loss']:.3f}",
                f"{100 * around['predicted']:.1f}",
                f"{100 * check['one_pass_accuracy']:.1f}",
            ]
        )
    header = ["step", "million tokens", "minutes", "zeros", "loss", "masked digits predicted, %", "in one pass, %"]
    note = (
        f"\n{run['parameters']:,} parameters, {run['layers']} layers, {run['model_bytes'] / 2**20:.1f} MiB of float16. "
        "In one pass: all 64 digits from masks at once, where chains of carries cannot be known.\n"
    )
    return markdown(header, rows, texts=0) + note + origin(run)
