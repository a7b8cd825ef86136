"""Laws of the tile sizes: pure, powers of two, defined for every supported shape; a measured tile goes first."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch

from kvcompress.kernels import tiles
from kvcompress.kernels.dispatch import most_window
from kvcompress.kernels.tiles import ARCHITECTURES, Tile, power_of_two, tile, tile_key

KERNELS = ("window_lse", "window_scores", "decode_attend")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEAD_DIMS = (8, 24, 64, 80, 96, 112, 128, 192, 256, 512)
GROUPS = (1, 2, 4, 7, 8, 12, 16, 32)
WINDOWS = (1, 5, 8, 32, 63, 128)


def is_power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@pytest.fixture
def no_measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Hides the measured tiles; returns the file that takes their place."""
    file = tmp_path / "tiles.json"
    monkeypatch.setattr(tiles, "MEASURED", file)
    tiles._measured.cache_clear()
    yield file
    tiles._measured.cache_clear()


@pytest.mark.parametrize(
    ("n", "least", "expected"), [(1, 1, 1), (2, 1, 2), (3, 1, 4), (64, 1, 64), (65, 1, 128), (3, 16, 16), (17, 16, 32)]
)
def test_power_of_two(n: int, least: int, expected: int) -> None:
    assert power_of_two(n, least) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_supported_shape_has_a_valid_tile(kernel: str, architecture: str) -> None:
    for dtype in DTYPES:
        for head_dim in HEAD_DIMS:
            for group in GROUPS:
                for window in (1,) if kernel == "decode_attend" else WINDOWS:
                    shape = {"dtype": dtype, "head_dim": head_dim, "group": group, "window": window}
                    found = tile(kernel, architecture=architecture, **shape)
                    sizes = (found.block_n, found.heads, found.warps)
                    assert all(map(is_power_of_two, sizes)), (shape, found)
                    assert found.block_n >= 16, "a dot needs 16 rows"
                    assert found.warps in (1, 2, 4, 8, 16)
                    assert 1 <= found.stages <= 4
                    assert found == tile(kernel, architecture=architecture, **shape), "the same arguments, another tile"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", ["window_lse", "window_scores"])
def test_rows_of_a_window_are_enough_for_a_dot_and_bounded(kernel: str, architecture: str) -> None:
    for dtype in DTYPES:
        for group in GROUPS:
            for head_dim, window in product((128, 512), WINDOWS):
                if window > most_window(head_dim):
                    continue
                shape = {"dtype": dtype, "head_dim": head_dim, "group": group, "window": window}
                found = tile(kernel, architecture=architecture, **shape)
                assert found.heads <= power_of_two(group), "heads that do not exist"
                rows = found.heads * power_of_two(window, 16)
                most = 128 if head_dim == 128 else 64
                assert rows <= most, "more rows than the registers, or the shared memory, of any target hold"


@pytest.mark.usefixtures("no_measurements")
@pytest.mark.parametrize(("small", "large"), [(8, 16), (80, 128), (96, 128), (112, 128), (192, 256), (264, 512)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_head_dims_with_equal_padding_share_a_tile(kernel: str, small: int, large: int) -> None:
    # A measured tile is kept under the padded size, so nothing else may decide.
    for architecture in ARCHITECTURES:
        for dtype in DTYPES:
            for group in GROUPS:
                shape = {"architecture": architecture, "dtype": dtype, "group": group, "window": 32}
                assert tile(kernel, head_dim=small, **shape) == tile(kernel, head_dim=large, **shape)
                assert tile_key(kernel, head_dim=small, **shape) == tile_key(kernel, head_dim=large, **shape)


def test_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kernel must be one of window_lse, .*got 'attention'"):
        tile("attention", architecture="sm80", dtype=torch.float32, head_dim=64, group=1)


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"architecture must be one of sm80, .*got 'sm70'"):
        tile("window_lse", architecture="sm70", dtype=torch.float32, head_dim=64, group=1)


def test_measured_tile_goes_first_and_only_for_its_shape(no_measurements: Path) -> None:
    shape = {"architecture": "sm90", "dtype": torch.bfloat16, "head_dim": 96, "group": 7, "window": 32}
    by_rule = tile("window_scores", **shape)
    measured = Tile(block_n=16, heads=1, warps=16, stages=4)
    assert measured != by_rule
    key = tile_key("window_scores", **shape)
    entry = {"block_n": 16, "heads": 1, "warps": 16, "stages": 4}
    no_measurements.write_text(json.dumps({"tiles": {key: entry}}), encoding="utf-8")
    tiles._measured.cache_clear()
    assert tile("window_scores", **shape) == measured
    assert tile("window_lse", **shape) != measured
    assert tile("window_scores", **{**shape, "architecture": "sm80"}) != measured


def test_key_names_what_a_tile_depends_on() -> None:
    key = tile_key("window_lse", architecture="gfx942", dtype=torch.float16, head_dim=80, group=7, window=5)
    assert key == "window_lse/gfx942/16bit/D128/G8/W8"


def test_checked_in_measurements_are_tiles_of_known_kernels() -> None:
    for key, entry in tiles._measured().items():
        kernel, architecture = key.split("/")[:2]
        assert kernel in KERNELS, key
        assert architecture in ARCHITECTURES, key
        assert is_power_of_two(Tile(**entry).block_n), key


def test_without_a_gpu_the_oldest_architecture_is_taken() -> None:
    assert tiles.architecture(torch.device("cpu")) == "sm80"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), "sm80"), ((8, 0), "sm80"), ((8, 9), "sm80"), ((9, 0), "sm90"), ((10, 0), "sm100"), ((12, 0), "sm100")],
)
def test_architecture_of_nvidia_devices(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert tiles.architecture(torch.device("cuda", 0)) == expected


def test_architecture_of_amd_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert tiles.architecture(torch.device("cuda", 0)) == "gfx942"
