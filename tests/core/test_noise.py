"""Random numbers continue where a stored state ends; dropout keeps its share."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from vxpress.core.noise import Noise, keep_limit


def test_a_loaded_state_continues_with_the_same_numbers() -> None:
    noise, like = Noise(3), torch.zeros(5, 7)
    noise.normal_like(like)
    noise.bits(5, 7)
    file = io.BytesIO()
    torch.save(noise.state_dict(), file)
    expected = noise.normals(2, like), noise.bits(3, 9), noise.dropout(like, 0.5)
    file.seek(0)
    other = Noise(4)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.normals(2, like), expected[0])
    np.testing.assert_array_equal(other.bits(3, 9), expected[1])
    assert torch.equal(other.dropout(like, 0.5), expected[2])


def test_a_state_is_not_changed_by_later_draws() -> None:
    noise = Noise(0)
    state = noise.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    noise.bits(4, 4)
    noise.normal_like(torch.zeros(4))
    assert all(torch.equal(value, state[name]) for name, value in before.items())


def test_dropout_masks_keep_the_expected_share() -> None:
    mask = Noise(0).dropout(torch.empty(1000, 100), 0.9)
    assert mask.unique().tolist() == [0.0, pytest.approx((1 << 16) / keep_limit(0.9))]
    assert float(mask.mean()) == pytest.approx(1.0, abs=0.01)
