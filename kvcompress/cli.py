"""The command line ``kvcompress``. Commands import what is heavy when they run: ``--help`` stays quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kvcompress.commands.bench import bench
from kvcompress.commands.demo import demo
from kvcompress.commands.failures import OneLineErrors
from kvcompress.commands.generate import generate
from kvcompress.commands.policies import policies

app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Compresses the KV cache of Hugging Face decoders while they run. "
    "Start with `kvcompress demo`; an error shows its traceback where KVCOMPRESS_TRACEBACK=1 is set.",
)
app.command()(generate)
app.command()(demo)
app.command()(policies)
app.add_typer(bench, name="bench")


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
