from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from vxpress.core.data import rows
from vxpress.core.data.rows import rows_array


def test_small_arrays_are_in_memory_and_large_ones_in_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MEMORY_BYTES", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert not isinstance(rows_array(10, 25), np.memmap)
    assert not isinstance(rows_array(100, 25, in_memory=True), np.memmap)
    large = rows_array(100, 25, np.float64)
    assert isinstance(large, np.memmap)
    assert large.shape == (100, 25)
    assert large.dtype == np.float64
    assert list(tmp_path.iterdir()) == []
    large[:] = np.arange(25)
    np.testing.assert_array_equal(large.sum(0), 100 * np.arange(25))


def test_a_full_disk_is_an_error_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"could not be reserved .*No space left on device.*TMPDIR"):
        rows_array(10_000, 10_000)
