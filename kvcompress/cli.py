"""The command line ``kvcompress``. Commands import what is heavy when they run: ``--help`` stays quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from kvcompress.commands.ad import ad
from kvcompress.commands.analyze import analyze, generation, samples
from kvcompress.commands.bench import bench
from kvcompress.commands.capture import capture
from kvcompress.commands.demo import demo
from kvcompress.commands.diffusion import diffusion
from kvcompress.commands.export import export
from kvcompress.commands.failures import OneLineErrors
from kvcompress.commands.generate import generate
from kvcompress.commands.plot_analysis import plot
from kvcompress.commands.policies import policies
from kvcompress.commands.prune import prune
from kvcompress.commands.recommend import recommend
from kvcompress.commands.report_page import report
from kvcompress.commands.run import run
from kvcompress.commands.similarity import similarity
from kvcompress.commands.tucker import tucker

# What each panel of the help lists, in this order.
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Compress": (generate, demo, policies),
    "See what a model attends to, and why each token was kept or dropped": (
        run,
        capture,
        samples,
        analyze,
        generation,
        plot,
        report,
        export,
    ),
    "Find out how far compression can go": (recommend, tucker, similarity, prune),
}
_OTHER_WORLDS = "Beyond chat: agents and diffusion models"


def _with_hyphens(name: str) -> str:
    """Lets every option be written with underscores too, as --cache_size; values are not touched."""
    return name.replace("_", "-")


app = typer.Typer(
    cls=OneLineErrors,
    context_settings={"token_normalize_func": _with_hyphens},
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compresses the KV cache of Hugging Face decoders while they run. "
    "Start with `kvcompress demo`; an error shows its traceback where KVCOMPRESS_TRACEBACK=1 is set.",
)
for panel, commands in _PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(bench, name="bench", rich_help_panel="Compare and time")
app.add_typer(ad, name="ad", rich_help_panel=_OTHER_WORLDS)
app.add_typer(diffusion, name="diffusion", rich_help_panel=_OTHER_WORLDS)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"kvcompress {version('kvcompress')}")
        except PackageNotFoundError:  # run from a source tree
            typer.echo("kvcompress (not installed: run from its source)")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Shows the help where no command is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")  # a terminal that knows no such character must not end the run
    app()


if __name__ == "__main__":
    main()
