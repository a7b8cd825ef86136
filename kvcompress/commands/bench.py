"""``kvcompress bench``: measures what is fast and what is good here, and compares such measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvcompress.commands import options
from kvcompress.commands.sweep import plot, report, sweep

_Operations = Annotated[
    str | None,
    typer.Option(
        help="Which, with commas: window_scores, select_top_k, compact, score_select_compact, decode_attend. "
        "Default: all.",
        show_default=False,
    ),
]
_Shapes = Annotated[
    str | None,
    typer.Option(
        help="Layers of which models, with commas: small, llama-3.1-8b, qwen2.5-7b, gemma-2-9b. "
        "Default: llama-3.1-8b, on a CPU small too.",
        show_default=False,
    ),
]
_Contexts = Annotated[
    str | None,
    typer.Option(
        help="Tokens of the prompts, with commas. Default: 8192,32768, on a GPU 131072 too.", show_default=False
    ),
]
_Batches = Annotated[
    str | None, typer.Option(help="Sequences, with commas. Default: 1, on a GPU 1,4.", show_default=False)
]
_Backend = Annotated[
    str, typer.Option(help="What takes part of ours: auto (all that this device can run), triton, torch.")
]
_Device = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1, ...")]
_Dtype = Annotated[str, typer.Option(help="auto (bfloat16 on a GPU, float32 on the CPU), float32, bfloat16, float16.")]
_Quick = Annotated[
    bool, typer.Option("--quick", help="Tiny sizes, to see that everything runs. Written only with --out.")
]
_CpuTime = Annotated[
    bool, typer.Option("--cpu-time", help="On a CPU: one thread and its processor time, for a busy machine.")
]
_Out = Annotated[
    Path | None,
    typer.Option(help="The JSON file to write. Default: bench/results/kernels_DEVICE.json.", show_default=False),
]

bench = typer.Typer(help="Measure policies on tasks, time the kernels, and compare runs.")
bench.command()(sweep)
bench.command()(plot)
bench.command()(report)


@bench.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Measure policies on tasks, time the kernels, and compare runs."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@bench.command()
def kernels(
    operations: _Operations = None,
    shapes: _Shapes = None,
    contexts: _Contexts = None,
    batches: _Batches = None,
    backend: _Backend = "auto",
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    quick: _Quick = False,
    cpu_time: _CpuTime = False,
    out: _Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Time the kernels against what they replace, each result checked first.

    Each operation is set against eager torch, against libraries where they are installed, and against what a plain
    copy reaches on this device.
    """
    from kvcompress.commands.kernel_timing import Request, run_request

    request = Request(
        operations=operations,
        shapes=shapes,
        contexts=contexts,
        batches=batches,
        backend=backend,
        device=device,
        dtype=dtype,
        quick=quick,
        cpu_time=cpu_time,
        out=out,
    )
    if run_request(request, as_json=as_json):
        raise typer.Exit(1)


@bench.command()
def compare(
    first: Annotated[Path, typer.Argument(help="JSON, or sweep's .jsonl, of the run before.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="The same of the run after.", show_default=False)],
    threshold: Annotated[
        float, typer.Option(help="Slower, or more bytes, by more than this fraction is a regression.")
    ] = 0.05,
    as_json: options.AsJson = False,
) -> None:
    """Compare two runs row by row; exit code 1 where something got worse.

    A time regressed where its median grew beyond the threshold and its 20-80 % intervals do not overlap; a cell of a
    sweep where the 95 % interval of the score's difference lies below zero, or its bytes grew beyond the threshold.
    """
    from kvcompress.commands.run_comparison import compare_files

    if compare_files(first, second, threshold, as_json=as_json):
        raise typer.Exit(1)


@bench.command()
def throughput(
    model: options.Model = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Instead of --model: random weights of llama-3.1-8b, llama-3.2-1b, qwen3-8b, qwen3-0.6b or tiny.",
            show_default=False,
        ),
    ] = None,
    policies: Annotated[str, typer.Option(help="Which, with commas: see `kvcompress policies`.")] = "cake,snapkv",
    cache_sizes: Annotated[str, typer.Option(help="Tokens kept per layer on average, with commas.")] = "1024",
    contexts: Annotated[str, typer.Option(help="Tokens of the prompts, with commas.")] = "8192",
    batches: Annotated[str, typer.Option(help="Sequences at a time, with commas.")] = "1",
    new_tokens: Annotated[int, typer.Option(help="Tokens generated, at least 6.")] = 32,
    rounds: Annotated[int, typer.Option(help="Timed generations of each policy.")] = 5,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    cpu_time: _CpuTime = False,
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="Let the policies decode by CUDA graphs.")] = False,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write.", show_default=False)] = None,
    as_json: options.AsJson = False,
) -> None:
    """Time prefill, first token and decoding of policies against the full cache, and count bytes.

    All policies of a cell generate from the same random prompt, in turns; what does not fit into memory is said in its
    row.
    """
    from kvcompress.commands.throughput import ThroughputRequest, run_throughput

    request = ThroughputRequest(
        model=model,
        shape=shape,
        policies=policies,
        cache_sizes=cache_sizes,
        contexts=contexts,
        batches=batches,
        new_tokens=new_tokens,
        rounds=rounds,
        device=device,
        dtype=dtype,
        cpu_time=cpu_time,
        cuda_graph=cuda_graph,
        out=out,
    )
    run_throughput(request, as_json=as_json)
