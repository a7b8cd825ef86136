"""The tables of Algorithm Distillation, as `kvcompress.bench.tables` renders them from results files."""

from kvcompress.bench.table_format import Run, figure, markdown, origin

_EPISODES_SHOWN = (1, 2, 3, 4, 6, 8, 10, 12, 15, 20)


def learning(run: Run) -> str:
    """Return per episode, with the lowest and the highest of the evaluation's seeds."""
    shown = [episode for episode in _EPISODES_SHOWN if episode <= run["episodes"]]
    rows = []
    for case in run["cases"]:
        spread = list(zip(case["return_by_episode"], case["lowest_seed"], case["highest_seed"], strict=True))
        cells = ["{:.1f} [{:.1f}, {:.1f}]".format(*spread[episode - 1]) for episode in shown]
        rows.append([f"{case['goals']} {case['case']}", *cells, f"{case['best_possible']:.1f}"])
    header = ["episode", *map(str, shown), "best possible"]
    first, held_out = run["cases"][0], run["cases"][-1]
    note = (
        f"\nMean return [lowest, highest of {first['seeds']} seeds of evaluation]; one seed of training. Random "
        f"actions gain {held_out['random_actions']:.1f}. Held-out goals never found in all {run['episodes']} "
        f"episodes: {held_out['goal_never_found']:.0%} of the games; in the others the last five episodes reach "
        f"{held_out['late_share_of_best_where_found']:.0%} of what is possible.\n"
    )
    return markdown(header, rows) + note + origin(run)


def returns(run: Run) -> str:
    """Loss of some strategies over more games, and their speed beside the full cache."""
    rows = []
    for case in run["cases"]:
        whole = case["strategy"] == "full"
        rows.append(
            [
                _NAMES.get(case["strategy"], f"`{case['strategy']}`"),
                "all" if whole else f"{case['keep_percent']}",
                f"{case['rooms']}",
                f"{case['late_return']:.2f}",
                "" if whole else _lost(case),
                figure(case["speedup_over_full"]),
            ]
        )
    header = ["history", "keep, %", "games", "late return", "lost, % [95 %]", "times caching all"]
    return markdown(header, rows) + f"\n{run['note']}\n" + origin(run)


def compression(run: Run) -> str:
    """Loss, length and speed of every strategy at every share that is kept."""
    rows = []
    for case in run["cases"]:
        whole = case["strategy"] in ("full", "reread")
        rows.append(
            [
                _NAMES.get(case["strategy"], f"`{case['strategy']}`"),
                "all" if whole else f"{case['keep_percent']}",
                f"{case['late_return']:.2f}",
                "" if whole else _lost(case),
                f"{case['final_tokens']:.0f}",
                f"{figure(case['median'])} [{figure(case['q20'])}, {figure(case['q80'])}]",
                figure(case["speedup_over_reread"]),
                figure(case["speedup_over_full"]),
            ]
        )
    header = [
        "history",
        "keep, %",
        "late return",
        "lost, % [95 %]",
        "tokens at the end",
        "ms per step [20 %, 80 %]",
        "times re-reading all",
        "times caching all",
    ]
    return markdown(header, rows) + f"\n{run['note']}\n" + origin(run)


def _lost(case: Run) -> str:
    """Loss with its interval in whole percent; a negative one is a gain."""
    low, high = case["late_return_lost_interval_95"]
    # Whole numbers, since a rounded float may be a negative zero.
    return f"{round(100 * case['late_return_lost'])} [{round(100 * low)}, {round(100 * high)}]"


_NAMES = {"full": "whole, cached", "reread": "whole, read again"}
