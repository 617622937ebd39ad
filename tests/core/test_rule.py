from __future__ import annotations

import threading

import pytest
import torch

from vxpress.core import rule, threads


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


def _choices() -> list[bool]:
    cpu = torch.device("cpu")
    return [
        rule.compiled_likelihood("nb", "gene", cpu, torch.float32),
        rule.sparse_input(cpu, torch.float32),
        rule.compiled_hidden(cpu, torch.float32, has_norm=True, training=True),
        rule.compiled_optimizer(cpu, torch.float32),
        rule.compiled_thinning(),
        not rule.dense_likelihood("nb", cpu),
    ]


def test_a_call_that_reads_few_counts_compiles_nothing() -> None:
    assert all(_choices())
    with rule.call():
        # nothing is known yet
        assert all(_choices())
        rule.reads(rule.SMALL // 1000, 1000)
        assert not any(_choices())
        with rule.call():
            rule.reads(rule.SMALL, 2)
            assert all(_choices())
        assert not any(_choices())
        rule.reads(10, 10)
        assert not any(_choices())
        rule.reads(rule.SMALL, 2)
        assert all(_choices())
    rule.reads(10, 10)
    assert all(_choices())


def test_threads_that_help_with_a_small_call_compile_nothing() -> None:
    found: dict[int, bool] = {}
    together = threading.Barrier(3, timeout=60)

    def work(i: int) -> None:
        together.wait()
        found[threading.get_ident()] = rule.small()

    with threads.OneThread(), threads.decided(3), rule.call():
        rule.reads(10, 10)
        threads.share(work, 3)
    assert list(found.values()) == [True] * 3
