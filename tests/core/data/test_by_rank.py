"""How the cells of an epoch are dealt to several processes."""

from __future__ import annotations

import pytest
import torch

from vxpress.core.data import BlocksByRank, ByBlock, ByRank, Sampler, Shuffled, dealt

ROWS = torch.cat((torch.arange(0, 700), torch.arange(900, 1403)))


def _by_block(seed: int = 0, block: int = 16) -> ByBlock:
    return ByBlock(ROWS, 11, seed, block=block, buffer=3)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [_by_block, lambda: Shuffled(ROWS, 11, 0)])
def test_every_epoch_each_cell_is_visited_once_in_equally_many_minibatches(world: int, order) -> None:
    processes = [dealt(order(), rank, world) for rank in range(world)]
    epochs = [[sampler.epoch() for sampler in processes] for _ in range(3)]
    for epoch in epochs:
        assert [len(parts) for parts in epoch] == [11] * world
        visited = torch.cat([rows for parts in epoch for rows in parts])
        assert torch.equal(visited.sort().values, ROWS)
    assert not torch.equal(torch.cat(list(epochs[0][0])), torch.cat(list(epochs[1][0])))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [_by_block, lambda: Shuffled(ROWS, 11, 0)])
def test_every_process_knows_the_size_of_the_whole_minibatch(world: int, order) -> None:
    processes = [dealt(order(), rank, world) for rank in range(world)]
    epoch = [sampler.epoch() for sampler in processes]
    for i in range(11):
        n_cells = sum(len(parts[i]) for parts in epoch)
        assert [sampler.n_cells(i) for sampler in processes] == [n_cells] * world


def test_no_block_is_read_by_two_processes() -> None:
    processes = [dealt(_by_block(), rank, 3) for rank in range(3)]
    assert all(isinstance(sampler, BlocksByRank) for sampler in processes)
    for _ in range(2):
        blocks = [set((torch.cat(list(sampler.epoch())) // 16).tolist()) for sampler in processes]
        assert len(set.union(*blocks)) == sum(map(len, blocks))


def test_processes_differ_by_the_cells_of_a_block_at_most() -> None:
    n_cells = [sum(map(len, dealt(_by_block(), rank, 3).epoch())) for rank in range(3)]
    assert max(n_cells) - min(n_cells) <= 16


def test_few_blocks_are_not_dealt_as_a_whole() -> None:
    assert isinstance(dealt(_by_block(block=256), 0, 2), ByRank)


def test_a_stored_state_continues_with_the_same_blocks() -> None:
    first, second = dealt(_by_block(), 1, 3), dealt(_by_block(4), 1, 3)
    first.epoch()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.epoch(), second.epoch(), strict=True))


def test_a_process_that_is_alone_visits_what_one_process_does() -> None:
    sampler: Sampler = Shuffled(ROWS, 11, 5)
    alone = dealt(Shuffled(ROWS, 11, 5), 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(sampler.epoch(), alone.epoch(), strict=True))
