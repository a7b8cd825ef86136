"""The benchmark of the kernels: its checks see mistakes, its rows add up, and what cannot run is named."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvcompress.bench import measure as measuring
from kvcompress.bench.kernels_bench import kernel_speed
from kvcompress.bench.kernels_bench.decode_case import DecodeStep
from kvcompress.bench.kernels_bench.device_timing import (
    DEVICE_SUFFIX,
    ON_DEVICE,
)
from kvcompress.bench.kernels_bench.goals import KernelRow, goals
from kvcompress.bench.kernels_bench.kernel_speed import (
    OPERATIONS,
    CaseResult,
    KernelBenchmark,
    KernelRun,
    default_file,
    our_backends,
)
from kvcompress.bench.kernels_bench.layer_shapes import SHAPES, LayerShape, default_names, shapes_of
from kvcompress.bench.kernels_bench.optional_libraries import flash_attn_decode, flashinfer_top_k, load
from kvcompress.bench.kernels_bench.prefill_cases import kept_error
from kvcompress.bench.kernels_bench.prepared_case import Layer, PreparedCase, Skipped, eager_tolerance, largest
from kvcompress.bench.measure import Case, Contender, checked_error, measure

CPU = torch.device("cpu")
SHAPE = LayerShape(model="tiny", query_heads=4, kv_heads=2, head_dim=16, batch=2, tokens=96, window=8, budget=20)


@pytest.fixture(scope="module", autouse=True)
def _no_collection() -> Iterator[None]:
    """Collecting all of torch's objects takes a third of a second for each case."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring.gc, "collect", lambda: 0)
        patch.setenv("KINETO_LOG_LEVEL", "99")
        yield


def layer(dtype: torch.dtype = torch.float32, device: torch.device = CPU, *backends: str) -> Layer:
    return Layer(SHAPE, dtype, device, backends or ("torch",))


def ticking(step: float = 0.5) -> Callable[[], float]:
    """A clock that moves on by `step` seconds each time it is asked."""
    ticks = itertools.count()
    return lambda: step * next(ticks)


def run(**options: Any) -> KernelRun:
    given: dict[str, Any] = {
        "operations": list(OPERATIONS), "shapes": [SHAPE], "dtype": torch.float32, "device": CPU,
        "backends": ("torch",), "quick": True, "clock": ticking(),
    }  # fmt: skip
    return KernelBenchmark(**{**given, **options}).run()


class TestShapes:
    def test_long_prompts_and_batches_are_for_gpus(self) -> None:
        found = shapes_of(["llama-3.1-8b"], gpu=True)
        assert {(shape.batch, shape.tokens) for shape in found} == set(itertools.product((1, 4), (8192, 32768, 131072)))
        assert all(
            (shape.query_heads, shape.kv_heads, shape.head_dim, shape.window) == (32, 8, 128, 32) for shape in found
        )
        on_cpu = shapes_of(["small", "llama-3.1-8b"], gpu=False)
        assert max(shape.tokens for shape in on_cpu) == 32768
        assert {shape.batch for shape in on_cpu} == {1}

    def test_labels_tell_all_shapes_apart(self) -> None:
        everything = shapes_of(list(SHAPES), gpu=True) + shapes_of(list(SHAPES), gpu=True, quick=True)
        assert len({shape.label for shape in everything}) == len(set(everything))

    def test_sizes_that_are_asked_for(self) -> None:
        found = shapes_of(["small", "gemma-2-9b"], gpu=True, contexts=(4096, 2048), batches=(3,))
        assert [(shape.model, shape.batch, shape.tokens) for shape in found] == [
            *(("small", 3, 4096), ("small", 3, 2048)),
            *(("gemma-2-9b", 3, 4096), ("gemma-2-9b", 3, 2048)),
        ]
        assert {shape.batch for shape in shapes_of(["llama-3.1-8b"], gpu=True, contexts=(9000,))} == {1, 4}
        with pytest.raises(ValueError, match=r"contexts must be longer than what is kept.*B=1, 1056 -> 1024 \+ 32"):
            shapes_of(["llama-3.1-8b"], gpu=False, contexts=(1056,))

    def test_unknown_name_and_defaults(self) -> None:
        with pytest.raises(ValueError, match=r"shapes must be among small, .*; got big"):
            shapes_of(["big"], gpu=False)
        assert set(default_names(gpu=True)) <= set(default_names(gpu=False)) <= set(SHAPES)


class TestChecks:
    """A check that lets mistakes pass would have wrong results timed."""

    def test_kept_tokens(self) -> None:
        exact = torch.tensor([[[5.0, 1.0, 4.0, 4.0, 2.0]]], dtype=torch.float64)
        assert kept_error(torch.tensor([[[3, 0]]]), exact) == 0  # a tie, broken the other way
        assert kept_error(torch.tensor([[[0, 4]]]), exact) == pytest.approx(0.5)
        assert kept_error(torch.tensor([[[0, 0]]]), exact) == float("inf")
        assert kept_error(torch.tensor([[[0, 5]]]), exact) == float("inf")

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_log_sum_exp_is_that_of_causal_attention(self, dtype: torch.dtype) -> None:
        made = layer(dtype)
        keys = made.key.double().repeat_interleave(2, dim=1)
        logits = made.query.double() @ keys.transpose(2, 3) * 16**-0.5
        for query in range(SHAPE.window):
            seen = SHAPE.tokens - SHAPE.window + query + 1
            wanted = logits[:, :, query, :seen].logsumexp(-1)
            torch.testing.assert_close(made.log_sum_exp[:, :, query].double(), wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("name", ["window_scores", "select_top_k", "compact", "score_select_compact"])
    def test_mistakes_of_an_operation_are_seen(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from kvcompress.bench.kernels_bench import prefill_cases

        broken = "window_scores" if name == "window_scores" else "select_top_k" if "select" in name else "compact"
        right = prefill_cases.operation

        def spoil(found: Any) -> Any:
            if broken == "window_scores":
                return found._replace(entropy=found.entropy * 1.01)
            if broken == "select_top_k":
                return torch.where(found == found[..., :1], found[..., 1:2], found)
            return found._replace(slots=found.slots._replace(values=found.slots.values.roll(1, 0)))

        def operation(which: str, backend: str) -> Callable[..., Any]:
            implementation = right(which, backend)
            return implementation if which != broken else lambda *args, **rest: spoil(implementation(*args, **rest))

        monkeypatch.setattr(prefill_cases, "operation", operation)
        for prepared in OPERATIONS[name](layer()):
            with pytest.raises(measuring.WrongResultError, match="torch gives a wrong result"):
                checked_error(prepared.case, prepared.contenders[0])

    def test_mistakes_of_a_decode_step_are_seen(self) -> None:
        step = DecodeStep(layer(), "running")
        assert step.error(lambda: step("torch")) < 1e-5

        def spoiled() -> tuple[torch.Tensor, torch.Tensor]:
            output, probability = step("torch")
            return output, probability.roll(1)

        assert step.error(spoiled) > 1e-2

    def test_eager_path_is_held_to_its_formula_only_in_full_precision(self) -> None:
        assert eager_tolerance(torch.float32) == 1e-4
        assert eager_tolerance(torch.bfloat16) == float("inf")
        assert torch.tensor(largest(1.0, float("nan"))).isnan()


class TestRun:
    def test_every_operation_is_checked_and_timed(self) -> None:
        found = run()
        names = {row["case"] for row in found.rows}
        assert names == {
            "copy", "window_scores", "window_scores_lse_given", "select_top_k", "compact", "compression",
            "compression_lse_given", "decode_attend",
        }  # fmt: skip
        assert not [entry for entry in found.left_out if entry.wrong]
        for row in found.rows:
            assert row["max_error"] is not None
            assert row["max_error"] < 1e-4
            assert row["unit"] == "ms"
            assert row["ratio_to"] in {"torch", "torch_copy"}

    def test_share_of_bandwidth_is_bytes_by_time_by_bandwidth(self) -> None:
        found = run(operations=["window_scores"])
        copy, ours = found.rows[0], found.rows[1]
        assert copy["bytes_moved"] is not None
        assert found.bandwidth == copy["bytes_moved"] / (copy["median"] / 1e3)
        # Keys read twice in float32, a score written for each of 88 tokens in each of 2 * 2 rows.
        assert ours["bytes_moved"] == 2 * (2 * 2 * 96 * 16) * 4 + 2 * 2 * 88 * 4
        assert ours["median"] == 500
        assert ours["share_of_bandwidth"] == pytest.approx(ours["bytes_moved"] / 0.5 / found.bandwidth)

    def test_wrong_and_too_large_contenders_are_left_out_untimed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[str] = []

        def too_large() -> float:
            raise torch.OutOfMemoryError("no")

        def failing() -> float:
            raise TypeError("no such argument\nand more")

        def cases(made: Layer) -> Iterator[PreparedCase]:
            work: Callable[[str], Callable[[], None]] = lambda name: lambda: calls.append(name)  # noqa: E731
            yield PreparedCase(
                case=Case(name="made_up", shape="none", ratio_to="wrong"),
                contenders=[
                    Contender(provider="wrong", run=work("wrong"), error=lambda: 1.0),
                    Contender(provider="large", run=work("large"), error=too_large),
                    Contender(provider="triton", run=work("triton"), error=failing),
                    Contender(provider="library", run=work("library"), error=failing),
                    Contender(provider="right", run=work("right"), error=lambda: 0.0),
                ],
                skipped=[Skipped("absent", "not installed")],
            )

        monkeypatch.setattr(kernel_speed, "OPERATIONS", {"made_up": cases})
        found = run(operations=["made_up"], skipped=[Skipped("absent", "no GPU")])
        assert set(calls) == {"right"}
        (row,) = found.rows[1:]
        assert (row["provider"], row["ratio_to"]) == ("right", "right")  # the yardstick itself is gone
        assert {(entry.provider, entry.wrong) for entry in found.left_out} == {
            ("wrong", True), ("large", False), ("absent", False), ("triton", True), ("library", False),
        }  # fmt: skip
        reasons = {entry.provider: entry.reason for entry in found.left_out}
        assert reasons["library"] == "fails: TypeError: no such argument"

    def test_each_case_is_reported_when_it_is_done(self) -> None:
        seen: list[CaseResult] = []
        benchmark = KernelBenchmark(
            operations=["compact"], shapes=[SHAPE], dtype=torch.float32, device=CPU, backends=("torch",), quick=True
        )
        found = benchmark.run(seen.append)
        assert [row for result in seen for row in result.rows] == found.rows

    def test_unknown_operation_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"operations must be among window_scores.*; got attention"):
            run(operations=["attention"])

    def test_sampler_takes_the_place_of_the_clock(self) -> None:
        case = Case(name="made_up", shape="none", ratio_to="a", unit=ON_DEVICE)
        times = {"a": 2.0, "b": 3.0}
        contenders = [Contender(provider=name, run=int) for name in times]
        rows = measure(case, contenders, repeats=2, sampler=lambda contender: times[contender.provider])
        assert [(row["median"], row["ratio"], row["unit"]) for row in rows] == [(2, 1, ON_DEVICE), (3, 1.5, ON_DEVICE)]


class TestWhoTakesPart:
    def test_on_a_cpu_the_kernels_are_skipped_with_a_reason(self) -> None:
        assert our_backends("torch", CPU, torch.float32) == (("torch",), [])
        backends, (skipped,) = our_backends("auto", CPU, torch.float32)
        assert backends == ("torch",)
        assert skipped.provider == "triton"
        assert "GPU" in skipped.reason
        with pytest.raises(ValueError, match=r"backend='triton' cannot be timed.*Use backend='torch'"):
            our_backends("triton", CPU, torch.float32)
        with pytest.raises(ValueError, match="backend must be one of auto, triton, torch; got 'jax'"):
            our_backends("jax", CPU, torch.float32)

    def test_library_that_is_not_there(self) -> None:
        assert load("fast", "no_such_library_of_attention", CPU) == (None, [Skipped("fast", "not installed")])

    def test_library_that_is_there_needs_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "flashinfer", object())
        monkeypatch.setitem(__import__("sys").modules, "flash_attn", object())
        assert flashinfer_top_k(torch.zeros(1, 2), 1) == (None, [Skipped("flashinfer", "runs on a GPU only")])
        query, key = torch.zeros(1, 4, 1, 16), torch.zeros(1, 2, 8, 16)
        assert flash_attn_decode(layer(), query, key, key)[1] == [Skipped("flash_attn", "runs on a GPU only")]

    def test_file_is_named_after_the_device(self) -> None:
        assert default_file("cpu").name == "kernels_cpu.json"
        assert default_file("NVIDIA H200").name == "kernels_nvidia_h200.json"


def row_of(case: str, provider: str, median: float, *, share: float | None = None, tokens: int = 131072) -> KernelRow:
    return KernelRow(
        case=case, shape=replace(SHAPE, tokens=tokens).label, dtype="bfloat16", provider=provider, unit=ON_DEVICE,
        median=median, q20=median, q80=median, repeats=1, bytes_moved=1, peak_memory_bytes=None, max_error=0.0,
        ratio_to="triton", ratio=1.0, ratio_q20=1.0, ratio_q80=1.0, share_of_bandwidth=share,
    )  # fmt: skip


class TestGoals:
    def test_long_compression_is_judged_by_roofline_and_authors(self) -> None:
        rows = [
            row_of("compression", f"triton{DEVICE_SUFFIX}", 1.0, share=0.5),
            row_of("compression", f"authors_eager{DEVICE_SUFFIX}", 30.0),
        ]
        roofline, faster = goals(rows)
        assert (roofline.got, roofline.met) == (2.0, False)
        assert (faster.got, faster.met) == (30.0, True)

    def test_eviction_is_judged_by_the_step_without_it(self) -> None:
        rows = [
            row_of("decode_attend", f"triton{DEVICE_SUFFIX}", 1.04),
            row_of("decode_attend", f"triton_without_eviction{DEVICE_SUFFIX}", 1.0),
            row_of("decode_attend", f"triton_cuda_graph{DEVICE_SUFFIX}", 1.06),
            row_of("decode_attend", f"triton_without_eviction_cuda_graph{DEVICE_SUFFIX}", 1.0),
        ]
        assert [(goal.wanted, goal.met) for goal in goals(rows)] == [(1.05, True), (1.05, False)]

    def test_short_prompts_and_times_with_launches_are_not_judged(self) -> None:
        assert goals([row_of("compression", "triton", 1.0, share=0.5)]) == []
        assert goals([row_of("compression", f"triton{DEVICE_SUFFIX}", 1.0, share=0.5, tokens=8192)]) == []
