"""A fetch brings every number as it is, in its place, and waits only where there is something to wait for."""

import copy
import pickle

import pytest
import torch

from kvcompress.engine.fetch import Fetch


def parts(device: str) -> list[torch.Tensor]:
    return [
        torch.arange(6).view(2, 3) + 2**40,
        torch.tensor([0.1, float("nan"), float("-inf")], device=device),
        torch.arange(3, device=device)[:, None] + 2**40,
        torch.empty(0, 2, device=device),
        torch.rand(4, 5, generator=torch.Generator().manual_seed(0)).to(device).T,
    ]


def check(found: list[torch.Tensor], sent: list[torch.Tensor]) -> None:
    for got, expected in zip(found, sent, strict=True):
        assert got.device.type == "cpu"
        torch.testing.assert_close(got.double(), expected.cpu().double(), rtol=0, atol=0, equal_nan=True)


def test_what_is_on_the_host_stays_there() -> None:
    sent = parts("cpu")
    fetch = Fetch(sent)
    assert not fetch.under_way
    assert all(got is part for got, part in zip(fetch.result(), sent, strict=True))
    assert Fetch([]).result() == []


def test_a_copy_has_what_has_arrived() -> None:
    fetch = Fetch(parts("cpu"))
    for twin in (copy.deepcopy(fetch), pickle.loads(pickle.dumps(fetch))):
        check(twin.result(), fetch.result())


@pytest.mark.gpu
def test_a_gpu_brings_its_numbers_in_one_copy() -> None:
    sent = parts("cuda")
    for some in (sent, sent[1:2], sent[:1], [sent[2], sent[0]]):
        fetch = Fetch(some)
        assert fetch.under_way == any(part.is_cuda for part in some)
        twin = copy.deepcopy(fetch)
        check(fetch.result(), some)
        assert not fetch.under_way
        check(fetch.result(), some)
        check(twin.result(), some)


@pytest.mark.gpu
def test_the_host_does_not_wait_for_a_gpu_before_it_is_asked() -> None:
    sent = parts("cuda")
    Fetch(sent).result()  # whatever is made once is made
    torch.cuda._sleep(2_000_000_000)
    behind = torch.cuda.Event()
    behind.record()
    fetch = Fetch(sent)
    assert not behind.query()
    check(fetch.result(), sent)
    assert behind.query()
