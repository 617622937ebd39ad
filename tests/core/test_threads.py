"""Torch uses one thread within a block, and parts are shared among as many as before."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from vxpress.core import threads
from vxpress.core.kernels import team
from vxpress.core.threads import OneThread, product, same_bits, share


@pytest.fixture(autouse=True)
def _two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads of torch, on a machine with many free processors."""
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(threads.load, "free", lambda: 64)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_torch_uses_one_thread_and_the_number_stays_known() -> None:
    assert threads.number() == 2
    with OneThread():
        assert (torch.get_num_threads(), threads.number()) == (1, 2)
        with OneThread():
            assert (torch.get_num_threads(), threads.number()) == (1, 2)
        assert (torch.get_num_threads(), threads.number()) == (1, 2)
    assert (torch.get_num_threads(), threads.number()) == (2, 2)


def test_the_number_is_that_of_free_processors_if_it_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.load, "free", lambda: 3)
    found = []
    for n in (1, 2, 8):
        torch.set_num_threads(n)
        with OneThread():
            found.append(threads.number())
        assert threads.number() == n
    assert found == [1, 2, 3]


def test_a_number_that_was_decided_is_not_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.load, "free", lambda: 1)
    with OneThread():
        assert threads.number() == 1
        with threads.decided(5):
            assert threads.number() == 5
            with threads.decided(None), OneThread():
                assert threads.number() == 5
        assert threads.number() == 1
    with threads.decided(4):
        assert threads.number() == 2
        for _ in range(2):
            with OneThread():
                assert threads.number() == 4


def test_the_environment_decides_unless_the_call_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.load, "free", lambda: 1)
    monkeypatch.setenv(threads.VARIABLE, " 3 ")
    with OneThread():
        assert threads.number() == 3
        with threads.decided(2):
            assert threads.number() == 2
        monkeypatch.setenv(threads.VARIABLE, "7")
        assert threads.number() == 3
    with OneThread():
        assert threads.number() == 7
    # empty is as good as absent
    monkeypatch.setenv(threads.VARIABLE, "")
    with OneThread():
        assert threads.number() == 1


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "2,1", "²"])
def test_an_environment_that_is_no_number_is_an_error_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:  # fmt: skip
    monkeypatch.setenv(threads.VARIABLE, text)
    with pytest.raises(ValueError, match=f"{threads.VARIABLE} is '{text}'; a whole number of at least 1 is expected"), OneThread():  # fmt: skip
        pass
    assert torch.get_num_threads() == 2
    monkeypatch.delenv(threads.VARIABLE)
    with OneThread():
        assert (torch.get_num_threads(), threads.number()) == (1, 2)
    assert torch.get_num_threads() == 2


def test_the_number_is_restored_after_an_error() -> None:
    @same_bits
    def fails() -> None:
        assert torch.get_num_threads() == 1
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.get_num_threads() == 2


def test_a_second_release_has_no_effect() -> None:
    one = OneThread()
    one.take()
    one.release()
    torch.set_num_threads(3)
    one.release()
    assert torch.get_num_threads() == 3


def test_a_block_that_ends_leaves_one_thread_to_a_block_of_another_thread() -> None:
    ends, seen = threading.Event(), []

    def new_thread() -> None:
        seen.append(torch.get_num_threads())

    def other() -> None:
        with OneThread():
            seen.append((torch.get_num_threads(), threads.number()))
            started.set()
            ends.wait()
            seen.append((torch.get_num_threads(), threads.number()))
        seen.append(torch.get_num_threads())

    started = threading.Event()
    thread = threading.Thread(target=other)
    with OneThread():
        thread.start()
        started.wait()
    assert torch.get_num_threads() == 2
    # the number of the process, which new threads get, is still one
    new = threading.Thread(target=new_thread)
    new.start()
    new.join()
    ends.set()
    thread.join()
    assert seen == [(1, 2), 1, (1, 2), 2]
    assert torch.get_num_threads() == 2


def test_each_part_is_computed_once_in_several_threads() -> None:
    together, done = threading.Barrier(2), []

    def work(i: int) -> None:
        if i < 2:
            together.wait(10)
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
        done.append((i, threading.get_ident()))

    share(work, 7)
    assert sorted(i for i, _ in done) == list(range(7))
    assert len({ident for _, ident in done}) == 2
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_in_a_part_is_raised_and_ends_the_others(place: int) -> None:
    together, done = threading.Barrier(2), []

    def work(i: int) -> None:
        if i < 2:
            together.wait(10)
            # the error is in the calling thread or in the other one
            if (threading.current_thread() is threading.main_thread()) == (place == 0):
                raise KeyError(i)
        done.append(i)

    with pytest.raises(KeyError):
        share(work, 200_000)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(300, 40, 20), (1024, 600, 512), (7, 5, 3)])
def test_a_product_has_the_same_bits_with_any_number_of_threads(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    n, k, m = shape
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, k, generator=generator).to(dtype), torch.randn(k, m, generator=generator).to(dtype)
    found = []
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        with OneThread():
            found.append([product(a, b), product(b.t(), a.t())])
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))
    exact = a.double() @ b.double()
    for x, y in zip(found[0], (exact, exact.t()), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0.02 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)


@pytest.mark.parametrize("n_sums", [1, 2, 3, 40])
@pytest.mark.parametrize("n", [1, 31, 64, 130, 512, 5000])
def test_groups_of_cells_depend_on_shapes_alone(n: int, n_sums: int) -> None:
    found = []
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        found.append(team.groups(n, n_sums).tolist())
    assert found[0] == found[1] == found[2]
    assert (found[0][0], found[0][-1]) == (0, n)
    assert all(first < last for first, last in zip(found[0], found[0][1:], strict=False))
    # few groups if each has many sums
    assert len(found[0]) - 1 <= max(1, n // (32 if n_sums < 3 else 128))


def test_results_come_in_order_and_few_items_are_taken_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(40):
            taken.append(i)
            yield i

    def work(i: int) -> tuple[int, int, bool, str]:
        assert not torch.is_grad_enabled()
        return i * i, threads.number(), threading.current_thread() is threading.main_thread(), np.geterr()["under"]

    with OneThread(), np.errstate(under="raise"):
        for i, (square, number, in_main, under) in enumerate(threads.in_order(work, items())):
            assert (square, number, in_main, under) == (i * i, 1, False, "raise")
            assert len(taken) <= i + 4


@pytest.mark.parametrize("n", [1, 30])
def test_an_error_of_a_result_is_raised_in_its_place(n: int) -> None:
    done: list[int] = []

    def work(i: int) -> int:
        if i == n - 1:
            msg = f"cell {i}"
            raise KeyError(msg)
        return i

    with OneThread(), pytest.raises(KeyError, match=f"cell {n - 1}"):
        done.extend(threads.in_order(work, iter(range(100))))
    assert done == list(range(n - 1))


def test_results_that_nobody_asks_for_are_not_computed() -> None:
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        return i

    with OneThread():
        results = threads.in_order(work, iter(range(100)))
        assert next(results) == 0
        results.close()
        assert len(begun) <= 4
        # a single item is computed by this thread, which shares its parts
        assert list(threads.in_order(lambda _: threads.number(), [0])) == [2]
    assert (
        list(threads.in_order(lambda i: threading.current_thread() is threading.main_thread(), range(3))) == [True] * 3
    )
