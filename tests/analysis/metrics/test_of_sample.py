"""Metrics of a sample are those of its whole attention, to 1e-6, whether the prompt came in blocks or at once."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from kvcompress.analysis.metrics import attention, attention_shares, cache_sparsity, influence, positions
from kvcompress.analysis.metrics.attention_layers import layer_similarity
from kvcompress.analysis.metrics.inputs import causal_mask
from kvcompress.analysis.metrics.of_sample import attention as of_attention
from kvcompress.analysis.metrics.of_sample import cache as of_cache
from kvcompress.analysis.metrics.of_sample import influence as of_influence
from kvcompress.analysis.metrics.of_sample import positions as of_positions
from kvcompress.analysis.metrics.of_sample import stages as of_stages
from kvcompress.analysis.metrics.of_sample.events import is_generated, is_prompt
from kvcompress.analysis.metrics.of_sample.step_change import map_change, step_changes
from kvcompress.analysis.metrics.step_change import change
from tests.analysis.metrics.whole import SETTINGS, Whole, generation, steps, write_whole

PROMPT, DECODED = 40, 9
BLOCKS = {"at once": [40], "in blocks": [17, 1, 20, 2]}
CLOSE = 1e-6


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got.double(), wanted.double(), atol=CLOSE, rtol=CLOSE, equal_nan=True)


@pytest.fixture(scope="module", params=sorted(BLOCKS))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return write_whole(tmp_path_factory.mktemp("sample"), generation(BLOCKS[request.param], DECODED))


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return write_whole(tmp_path_factory.mktemp("steps"), steps(30, 5), prompt=12)


def of_raw(values: torch.Tensor, seen: torch.Tensor, first: int) -> dict[str, torch.Tensor]:
    """The metrics of raw attention, of each query."""
    return {
        "entropy": attention.entropy(values),
        "entropy_normalised": attention.entropy_normalised(values, seen),
        "maximum": attention.maximum(values),
        "variance": attention.variance(values, seen),
        "density": attention.density(values, seen),
        "sink_mass": attention_shares.sink_share(values, SETTINGS.sink_tokens),
        "recent_mass": attention_shares.recent_share(values, SETTINGS.recent_tokens, first),
        "diagonal_mass": attention_shares.diagonal_share(values, first),
    }


class TestAttention:
    @pytest.mark.parametrize("part", ["all", "prompt", "generated"])
    def test_mean_over_queries_of_each_head(self, whole: Whole, part: str) -> None:
        rows = {"all": slice(0, None), "prompt": slice(0, PROMPT), "generated": slice(PROMPT, None)}[part]
        values = whole.map[:, :, rows]
        seen = causal_mask(PROMPT + DECODED, PROMPT + DECODED)[rows]
        which = {"all": None, "prompt": is_prompt(whole.sample), "generated": is_generated(whole.sample)}[part]
        found = of_attention.by_head(whole.sample, which)
        for name, wanted in of_raw(values, seen, rows.start).items():
            close(found[name], wanted.mean(-1))
        close(found["prompt_mass"], values[..., :PROMPT].sum(-1).mean(-1))
        close(found["focus"], 1 / attention.entropy(values).mean(-1))
        close(found["mean"], (values.sum((-2, -1)) / seen.sum()).float())
        layers = of_attention.by_layer(whole.sample, which)
        close(layers["entropy"], attention.entropy(values).mean((1, 2)))
        close(layers["focus"], 1 / attention.entropy(values).mean((1, 2)))

    def test_overall(self, whole: Whole) -> None:
        found = of_attention.overall(whole.sample)
        assert found is not None
        close(found["entropy"], attention.entropy(whole.map).mean())
        close(found["focus"], 1 / attention.entropy(whole.map).mean())
        assert of_attention.overall(whole.sample, whole.sample.kinds > 1) is None

    def test_evolution(self, whole: Whole) -> None:
        found = of_attention.by_event(whole.sample)
        close(found["entropy"], torch.stack([attention.entropy(p).mean() for p in whole.attention]))
        close(found["maximum"], torch.stack([attention.maximum(p).mean() for p in whole.attention]))

    def test_coverage(self, whole: Whole) -> None:
        for place, percent in enumerate((50, 80, 90, 95, 99)):
            wanted = attention.positions_for(whole.map, percent).double().mean((1, 2))
            close(of_attention.coverage(whole.sample)[:, place], wanted)

    def test_similarity_of_layers_is_that_of_their_binned_maps(self, diffusion: Whole) -> None:
        # 30 tokens in 64 bins: each token has a bin of its own, so binning changes nothing.
        found = of_attention.similarity_of_layers(diffusion.sample)
        assert found.basis == "maps of event 4"
        close(found.matrix, layer_similarity(diffusion.attention[-1].mean(1)))

    def test_similarity_without_maps_is_that_of_positions(self, tmp_path: Path) -> None:
        sample = write_whole(tmp_path, generation([1], 5)).sample
        found = of_attention.similarity_of_layers(sample)
        assert found.basis == "mass by position"
        assert bool(((found.matrix >= 0) & (found.matrix <= 1)).all())

    def test_observed_queries_estimate_the_mean_over_all(self, tmp_path: Path) -> None:
        few = write_whole(tmp_path, generation([40], 9), type(SETTINGS)(max_queries=10, recent_tokens=6))
        observed = few.map[:, :, [3, 7, 11, 15, 19, 23, 27, 31, 35, 39, *range(40, 49)]]
        weights = torch.tensor([4.0] * 10 + [1.0] * 9, dtype=torch.float64)
        wanted = (attention.entropy(observed) * weights).sum(-1) / weights.sum()
        close(of_attention.by_head(few.sample)["entropy"], wanted)


class TestInfluence:
    def test_influence_on_decoded_tokens(self, whole: Whole) -> None:
        found = of_influence.influence(whole.sample)
        assert found is not None
        close(found[:, :PROMPT], influence.influence_of_prompt(whole.map, PROMPT).mean(1))
        close(found.sum(1), torch.ones(3))

    def test_cross_mass(self, whole: Whole) -> None:
        for got, wanted in zip(of_influence.cross(whole.sample), influence.cross_mass(whole.map, PROMPT), strict=True):
            close(got, wanted)

    def test_boundary(self, whole: Whole) -> None:
        found = of_influence.boundary(whole.sample, 5)
        assert found is not None
        close(found, influence.boundary_share(whole.map, PROMPT, 5).mean((1, 2)))

    def test_without_decoded_tokens_the_last_event_pays(self, diffusion: Whole) -> None:
        assert of_influence.influence(diffusion.sample) is None
        assert of_influence.boundary(diffusion.sample) is None
        paid_by, mass = of_influence.mass_received(diffusion.sample)
        assert paid_by == "queries of event 4"
        close(mass, influence.influence_received(diffusion.attention[-1]).mean((0, 1)))

    def test_most_attended_tokens_come_with_their_texts(self, whole: Whole) -> None:
        found = of_influence.most_attended(whole.sample)
        received = whole.map[:, :, PROMPT:].mean((0, 1, 2))
        order = received.argsort(descending=True)[:16].tolist()
        assert found["paid_by"] == "decoded tokens"
        assert [row["position"] for row in found["tokens"]] == order
        assert [row["token"] for row in found["tokens"]] == [f"t{i}" for i in order]
        assert [row["mass"] for row in found["tokens"]] == pytest.approx(received[order].tolist(), abs=CLOSE)


class TestPositions:
    def test_profile(self, whole: Whole) -> None:
        wanted = positions.binned_profile(positions.distance_profile(whole.map))
        close(of_positions.profile(whole.sample), wanted)

    def test_recent_and_distant(self, whole: Whole) -> None:
        recent, distant = of_positions.recent_and_distant(whole.sample, is_generated(whole.sample))
        values = whole.map[:, :, PROMPT:]
        for got, wanted in zip(
            (recent, distant), positions.recent_and_distant(values, SETTINGS.recent_tokens, PROMPT), strict=True
        ):
            close(got, wanted.mean(-1))

    def test_marks_name_the_distances_that_hold_the_mass(self, whole: Whole) -> None:
        section = of_positions.section(whole.sample)
        for part, rows in (("prompt", slice(0, PROMPT)), ("generated", slice(PROMPT, None))):
            exact = positions.distance_profile(whole.map[:, :, rows], rows.start).mean((0, 1))
            for percent in (80, 90):
                low, high = section[part]["marks"][str(percent)]["distances"]
                assert low <= int(positions.distance_holding(exact, percent)) <= high


class TestStages:
    def test_stages_are_means_over_their_queries(self, whole: Whole) -> None:
        values = attention.entropy(whole.map).mean(1)  # [L, T]
        parts = ([0, PROMPT], [PROMPT, 43], [43, 46], [46, 49])
        wanted = torch.stack([values[:, first:last].mean(1) for first, last in parts])
        close(of_stages.by_stage(whole.sample)["entropy"], wanted)
        assert of_stages.held_by_stage(whole.sample) is None

    def test_section_says_what_changes(self, whole: Whole) -> None:
        section = of_stages.section(whole.sample)
        assert [stage["events"] for stage in section["stages"]][1:] == [3, 3, 3]
        entropies = [float(stage["metrics"]["entropy"]) for stage in section["stages"]]
        changes = [float(row["entropy"]) for row in section["changes"]]
        assert changes == pytest.approx([entropies[i + 1] - entropies[i] for i in range(3)])

    def test_prompt_alone_has_no_other_stages(self, tmp_path: Path) -> None:
        section = of_stages.section(write_whole(tmp_path, generation([20], 0)).sample)
        assert [stage["events"] for stage in section["stages"]] == [1, 0, 0, 0]
        assert math.isnan(float(section["stages"][1]["metrics"]["entropy"]))


class TestStepChange:
    def test_decoded_tokens(self, whole: Whole) -> None:
        found = step_changes(whole.sample)
        assert found is not None
        decoded = [p.mean(1) for p in whole.attention[-DECODED:]]  # [L, 1, keys]
        wanted = [change(before, after) for before, after in pairwise(decoded)]
        close(found.total_variation, torch.stack([step.total_variation[:, 0] for step in wanted]))
        close(found.cosine, torch.stack([step.cosine[:, 0] for step in wanted]))

    def test_maps_of_steps(self, diffusion: Whole) -> None:
        # Bins of 30 tokens hold one token or none.
        bins = torch.arange(30) * 64 // 30
        found = map_change(diffusion.sample, 1, 3)[:, :, bins][:, :, :, bins]
        close(found, diffusion.attention[3] - diffusion.attention[1])

    def test_maps_that_cannot_be_compared(self, tmp_path: Path) -> None:
        sample = write_whole(tmp_path, generation([10, 10], 3)).sample
        with pytest.raises(ValueError, match=r"events 0 and 1 see 10 and 20"):
            map_change(sample, 0, 1)
        with pytest.raises(ValueError, match=r"after must be an event with a map, one of \[0, 1\]; got 3"):
            map_change(sample, 0, 3)

    def test_single_step_changes_nothing(self, tmp_path: Path) -> None:
        assert step_changes(write_whole(tmp_path, generation([10], 1)).sample) is None


class TestCache:
    @pytest.mark.parametrize("what", ["key", "value"])
    def test_potential_is_that_of_energy_and_norms(self, whole: Whole, what: of_cache.What) -> None:
        values = whole.keys if what == "key" else whole.values
        found = of_cache.potential(whole.sample, what, 90)
        close(found.dimensions, cache_sparsity.pruning_potential(cache_sparsity.dimension_energy(values), 90))
        close(found.tokens, cache_sparsity.pruning_potential(cache_sparsity.norms(values).square(), 90))

    @pytest.mark.parametrize("what", ["key", "value"])
    def test_sections_agree_with_the_tensors(self, whole: Whole, what: str) -> None:
        values = whole.keys if what == "key" else whole.values
        first = len(whole.attention[0][0, 0])
        scales = cache_sparsity.scale(values[:, :, :first])
        section = of_cache.section(whole.sample)
        for place, threshold in enumerate((0.01, 0.05, 0.1, 0.25)):
            wanted = cache_sparsity.layer_sparsity(values, threshold, scales)
            close(section["layers"][f"{what}_sparsity"][:, place], wanted)
        close(section["layers"][f"{what}_norm"], cache_sparsity.norms(values).mean((1, 2)))
        dimensions = cache_sparsity.dimension_sparsity(values, 0.1, scales).flatten(0, 1)
        close(section["embeddings"][f"{what}_sparsity"], dimensions.mean(0))
        close(section["embeddings"][f"{what}_consistency"], cache_sparsity.dimension_consistency(dimensions))
        close(section["embeddings"][f"{what}_energy_share"].sum(), torch.ones(()))

    def test_by_position_averages_the_tokens_of_a_bin(self, whole: Whole) -> None:
        found = of_cache.by_position(whole.sample, "kv.key_norm", bins=7)
        norms = cache_sparsity.norms(whole.keys).mean((0, 1))
        places = torch.arange(49) * 7 // 49
        close(found, torch.stack([norms[places == number].mean() for number in range(7)]))
