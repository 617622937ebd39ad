from __future__ import annotations

import pytest
import torch

from vxpress.core import rule


def test_the_rule_does_not_measure_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("the time was read"))
    cpu = torch.device("cpu")
    assert rule.compiled_likelihood("nb", "gene", cpu, torch.float32)
    assert not rule.compiled_likelihood("nb", "gene-cell", cpu, torch.float32)
    assert not rule.compiled_likelihood("gaussian", "gene", cpu, torch.float32)
    assert not rule.compiled_likelihood("nb", "gene", cpu, torch.float64)
    assert not rule.compiled_likelihood("nb", "gene", torch.device("cuda"), torch.float32)
    assert rule.compiled_shares(cpu, torch.float32, 2**36)
    assert not rule.compiled_shares(cpu, torch.float32, 2**30)
    assert not rule.compiled_shares(cpu, torch.float64, 2**36)
    assert not rule.compiled_shares(torch.device("cuda"), torch.float32, 2**36)
    assert rule.product_dtype(256, 128, 2000, training=False) == torch.float32
    assert rule.table_length(256, 1) == rule.TABLE_COUNTS
    assert rule.table_length(256, 10_000) == 2
