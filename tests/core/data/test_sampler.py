from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vxpress.core.data import ByBlock, ByRank, Cells, Sampler, Shuffled, number_of_minibatches
from vxpress.core.data.sampler import spread

MakeCells = Callable[..., Cells]
# every third cell is held out, so blocks have gaps
ROWS = torch.tensor([row for row in range(150) if row % 3])


def _by_block(seed: int = 0, *, n_batches: int = 7, block: int = 16, buffer: int = 2) -> ByBlock:
    return ByBlock(ROWS, n_batches, seed, block=block, buffer=buffer)


SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "shuffled": lambda seed: Shuffled(ROWS, 7, seed),
    "by block": _by_block,
    "by block, one at a time": lambda seed: _by_block(seed, block=1, buffer=1),
    "by block, all at once": lambda seed: _by_block(seed, block=1000, buffer=1000),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_cell_is_visited_once_per_epoch(name: str) -> None:
    sampler, orders = SAMPLERS[name](0), []
    for _ in range(3):
        parts = sampler.epoch()
        # 100 cells in 7 minibatches
        assert sorted(map(len, parts)) == [14] * 5 + [15] * 2
        orders.append(torch.cat(list(parts)))
        assert torch.equal(orders[-1].sort().values, ROWS)
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_seed_decides_the_order(name: str) -> None:
    first, again, other = (torch.cat(list(SAMPLERS[name](seed).epoch())) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("world", [1, 3])
def test_a_restored_state_continues_the_order(name: str, world: int) -> None:
    def make(seed: int) -> Sampler:
        return SAMPLERS[name](seed) if world == 1 else ByRank(SAMPLERS[name](seed), 1, world)

    sampler = make(0)
    sampler.epoch()
    state = sampler.state_dict()
    expected = [torch.cat(list(sampler.epoch())) for _ in range(2)]
    resumed = make(99)
    resumed.load_state_dict(state)
    assert all(torch.equal(torch.cat(list(resumed.epoch())), order) for order in expected)


def test_the_shuffled_order_is_a_permutation_of_torch() -> None:
    generator = torch.Generator().manual_seed(5)
    sampler = Shuffled(ROWS, 4, 5)
    for _ in range(2):
        expected = ROWS[torch.randperm(100, generator=generator)].tensor_split(4)
        assert all(torch.equal(a, b) for a, b in zip(sampler.epoch(), expected, strict=True))


@pytest.mark.parametrize(("n", "most"), [(1, 1), (7, 7), (24, 6), (25, 6), (29, 6), (40, 1), (5, 100)])
def test_groups_are_spread_over_all_numbers(n: int, most: int) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = spread(n, most, generator), spread(n, most, generator)
    k = -(-n // most)
    for groups in (first, second):
        assert len(groups) == k
        assert sorted(itertools.chain(*groups)) == list(range(n))
        for group in groups:
            assert n // k <= len(group) <= min(most, -(-n // k))
            # one of each k consecutive numbers; the last ones may be fewer
            assert [number // k for number in group] == list(range(len(group)))
    assert first != second or n == 1 or k == 1
    assert spread(0, most, generator) == []


def test_every_number_is_as_likely_in_every_group() -> None:
    generator = torch.Generator().manual_seed(0)
    count = torch.zeros(3, 8)
    for _ in range(3000):
        for i, group in enumerate(spread(8, 3, generator)):
            count[i, group] += 1
    assert (count / 3000 - 1 / 3).abs().max() < 0.04


def test_minibatches_of_sorted_cells_have_the_composition_of_all() -> None:
    # 40 kinds of 64 cells each, 4 blocks of each kind, 40 of 160 blocks at a time
    kind = torch.arange(2560) // 64
    parts = ByBlock(torch.arange(2560), 40, 0, block=16, buffer=40).epoch()
    for window in range(4):
        mixed = torch.cat(list(parts[10 * window : 10 * (window + 1)]))
        assert (torch.bincount(kind[mixed], minlength=40) == 16).all()


def _runs(order: Tensor, block: int) -> list[list[int]]:
    """Return the blocks of each stretch of an order, which ends where a block comes that the last cells did not have."""
    return [list(group) for _, group in itertools.groupby((order // block).tolist())]


def test_blocks_are_read_a_buffer_at_a_time() -> None:
    order = torch.cat(list(_by_block().epoch()))
    # blocks of 16 rows, two at a time; the last has rows 144 to 149
    sizes = {b: (ROWS // 16).tolist().count(b) for b in range(10)}
    held: list[set[int]] = []
    start = 0
    while start < len(order):
        window = set((order[start : start + 1] // 16).tolist())
        for row in order[start:].tolist():
            window.add(row // 16)
            if len(window) == 2:
                break
        n = sum(sizes[b] for b in window)
        assert set((order[start : start + n] // 16).tolist()) == window
        held.append(window)
        start += n
    assert sorted(b for window in held for b in window) == list(range(10))
    # and mixed within the buffer
    assert len(_runs(order, 16)) > 20


def test_cells_of_a_buffer_are_visited_before_the_next_is_read() -> None:
    order = torch.cat(list(_by_block(block=16, buffer=1).epoch()))
    assert len(_runs(order, 16)) == 10


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_every_minibatch(world: int) -> None:
    whole = SAMPLERS["by block"](2).epoch()
    ranks = [ByRank(SAMPLERS["by block"](2), rank, world).epoch() for rank in range(world)]
    assert {len(parts) for parts in ranks} == {len(whole)}
    for i, part in enumerate(whole):
        assert torch.equal(torch.cat([parts[i] for parts in ranks]), part)
        assert max(len(parts[i]) for parts in ranks) - min(len(parts[i]) for parts in ranks) <= 1
        assert min(len(parts[i]) for parts in ranks) >= 2


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="100 cells in 7 minibatches are too few for 8 processes"):
        ByRank(Shuffled(ROWS, 7, 0), 0, 8)
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="a rank from 0"):
            ByRank(Shuffled(ROWS, 7, 0), rank, world)
    with pytest.raises(ValueError, match="at least 1"):
        _by_block(buffer=0)


def test_no_minibatch_has_a_single_cell() -> None:
    for n in range(2, 60):
        for size in (1, 2, 3, 32, 128):
            parts = Shuffled(torch.arange(n), number_of_minibatches(n, size), 0).epoch()
            assert min(map(len, parts)) >= 2
            if size >= 4:
                assert max(map(len, parts)) <= size
    assert number_of_minibatches(1000, 128) == 8


def test_a_source_orders_its_cells_by_shuffling(make_cells: MakeCells) -> None:
    assert isinstance(make_cells(30).sampler(torch.arange(30), 3, 0), Shuffled)
