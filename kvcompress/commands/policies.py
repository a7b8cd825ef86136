"""``kvcompress policies``: what can be given to ``--policy``."""

from __future__ import annotations


def policies() -> None:
    """List the policies, their parameters, and the presets of CAKE."""
    from inspect import getdoc

    from rich.console import Console
    from rich.table import Table

    from kvcompress.policies.registry import POLICIES, parameters_of
    from kvcompress.presets import PRESETS

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("policy", "what it keeps", "parameters and defaults"):
        table.add_column(heading)
    sizes = ("cache_size", "compression_ratio")
    for name, kind in sorted(POLICIES.items()):
        parameters = [f"{key}={value}" for key, value in parameters_of(name).items() if key not in sizes]
        table.add_row(name, (getdoc(kind) or "").splitlines()[0], ", ".join(parameters) if name != "full" else "-")
    console = Console(highlight=False)
    console.print(table, markup=False)
    console.print("\nEach but full takes cache_size or compression_ratio.", markup=False)
    console.print("One with a base hands what it does not know itself on to it.", markup=False)
    console.print(f"Presets of cake: {', '.join(PRESETS)}.", markup=False)
