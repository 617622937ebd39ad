"""Groups of a map, and the shift."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vxpress.core.maps.shift import Shift, ShiftOptions

CENTRES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
SHIFTS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)


def _cells(sizes: list[int], *, treated: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw cells around the centre of their group whose mean is exactly the centre, moved by the shift if treated."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for code, n in enumerate(sizes):
        x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        parts.append(x - x.mean(0, keepdim=True) + CENTRES[code] + (SHIFTS[code] if treated else 0.0) if n else x)
    return torch.cat(parts), torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def _fitted(local: str = "none") -> tuple[Shift, Tensor, Tensor]:
    source, source_group = _cells([30, 50, 20], treated=False)
    target, target_group = _cells([90, 10, 0], treated=True, seed=1)
    fitted = Shift(ShiftOptions(local=local))
    fitted.fit(source, target, source_group, target_group, torch.Generator().manual_seed(0))
    return fitted, source, source_group


def test_a_treated_group_moves_by_its_own_difference() -> None:
    fitted, z, group = _fitted()
    moved = fitted(z, group)
    np.testing.assert_allclose((moved - z)[group < 2], SHIFTS[group[group < 2]], atol=1e-12)


@pytest.mark.parametrize("code", [2, -1, 7])
def test_other_groups_move_by_the_others_which_all_count_the_same(code: int) -> None:
    fitted, z, group = _fitted()
    moved = fitted(z[group == 2], torch.full((20,), code))
    np.testing.assert_allclose(moved - z[group == 2], np.tile([0.5, 1.0], (20, 1)), atol=1e-12)


def test_a_local_shift_weights_groups_by_the_distance_of_their_controls() -> None:
    fitted, z, group = _fitted("groups")
    # squared distances 100 and 200 from the centre of the third group, and the nearest is the bandwidth
    weight = np.exp(-0.5) / (np.exp(-0.5) + np.exp(-1.0))
    np.testing.assert_allclose((fitted(z, group) - z)[group == 2], np.tile([weight, 2 * (1 - weight)], (20, 1)))
    cells, _, _ = _fitted("cells")
    near = torch.tensor([[9.0, 0.0], [1.0, 0.0], [5.0, 0.0]], dtype=torch.float64)
    shift = cells(near, torch.full((3,), 2)) - near
    np.testing.assert_allclose(shift, [[0, 2], [1, 0], [0.5, 1]], atol=1e-6)


def test_calls_do_not_depend_on_their_order_or_on_other_cells() -> None:
    first, z, group = _fitted()
    second = _fitted()[0]
    second(z[group == 2], group[group == 2])
    np.testing.assert_array_equal(first(z, group), second(z, group))
    np.testing.assert_array_equal(first(z[:1], group[:1]), first(z, group)[:1])


def test_without_groups_all_cells_move_together() -> None:
    source, target = _cells([8], treated=False)[0], _cells([5], treated=True)[0]
    fitted = Shift()
    fitted.fit(source, target, None, None, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(fitted(source.float()).mean(0), SHIFTS[0], atol=1e-6)
    assert fitted(source.float()).dtype == torch.float64


@pytest.mark.parametrize(
    ("source", "target", "groups", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 4), None, "2 dimensions and treated cells 4"),
        (torch.full((3, 2), float("nan")), torch.zeros(3, 2), None, "source_nd has NaN"),
        (torch.zeros(3), torch.zeros(3, 2), None, r"source_nd has shape \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2), (torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1])), "No group has both"),
        (torch.zeros(3, 2), torch.zeros(3, 2), (torch.tensor([0, 0]), torch.tensor([0, 0, 0])), "2 codes .* for 3"),
    ],
)
def test_wrong_positions_are_refused(
    source: Tensor, target: Tensor, groups: tuple[Tensor, Tensor] | None, message: str
) -> None:
    source_group, target_group = groups or (None, None)
    with pytest.raises(ValueError, match=message):
        Shift().fit(source, target, source_group, target_group, torch.Generator())


@pytest.mark.parametrize("alike", [True, False])
def test_near_groups_count_more_if_they_predict_each_other_better(alike: bool) -> None:
    # two pairs of near groups, whose members respond alike or not
    centres = torch.tensor([[0.0, 0.0], [0.0, 1.0], [20.0, 0.0], [20.0, 1.0]], dtype=torch.float64)
    up, down = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    moves = torch.stack([up, up, down, down] if alike else [up, down, up, down]).double()
    noise = 0.01 * torch.randn(4, 30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group = torch.arange(4).repeat_interleave(30)
    source = (centres[:, None] + noise).flatten(0, 1)
    target = source.view(4, 30, 2) + moves[:, None]
    new, new_group = torch.tensor([[0.5, 0.5]]).double().expand(30, 2), torch.full((30,), 4)
    shift = Shift()
    sources, groups = torch.cat([source, new]), torch.cat([group, new_group])
    shift.fit(sources, target.flatten(0, 1), groups, group, torch.Generator().manual_seed(0))
    moved = (shift(new, new_group) - new)[0]
    torch.testing.assert_close(moved, up.double() if alike else moves.mean(0), atol=1e-3, rtol=0)
