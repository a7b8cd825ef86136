"""``kvcompress policies``: what can be given to ``--policy``."""

from __future__ import annotations


def policies() -> None:
    """List the policies, their parameters, and the presets of CAKE."""
    from dataclasses import fields
    from inspect import getdoc

    from rich.console import Console
    from rich.table import Table

    from kvcompress.policies.registry import POLICIES
    from kvcompress.presets import PRESETS

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("policy", "what it keeps", "parameters and defaults"):
        table.add_column(heading)
    sizes = ("cache_size", "compression_ratio")
    for name, kind in sorted(POLICIES.items()):
        parameters = [f"{field.name}={field.default}" for field in fields(kind) if field.name not in sizes]
        table.add_row(name, (getdoc(kind) or "").splitlines()[0], ", ".join(parameters) if name != "full" else "-")
    console = Console(highlight=False)
    console.print(table, markup=False)
    console.print("\nEach but full takes cache_size or compression_ratio.", markup=False)
    console.print(f"Presets of cake: {', '.join(PRESETS)}.", markup=False)
