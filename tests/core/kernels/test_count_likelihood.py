"""Fast implementations of the NB and ZINB likelihood, compared with the plain one in float64 over extreme ranges."""

from __future__ import annotations

import signal
import time
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from vxpress.core import rule
from vxpress.core.covariates import Covariates
from vxpress.core.data import Batch, Counts, Rows
from vxpress.core.kernels import count_likelihood
from vxpress.core.kernels.count_likelihood import OutputLayers, _Buffer, count_log_likelihood
from vxpress.core.kernels.dense_likelihood import dense_log_likelihood
from vxpress.core.likelihoods import Decoded, NegativeBinomial, ZeroInflatedNegativeBinomial
from vxpress.core.threads import OneThread

WIDTH = 8


def _batch(x: np.ndarray, log_library: Tensor) -> Batch:
    n = len(x)
    counts = Counts.from_scipy(sparse.csr_matrix(x.astype(np.float32)))
    return Batch(
        Rows(torch.arange(n), counts),
        torch.arange(n),
        log_library,
        Covariates(torch.zeros(n, 0).long(), torch.zeros(n, 0)),
    )


def _problem(
    n: int, g: int, *, gate: bool, rest: bool = False, rows: int = 1, top: float = 4.0, seed: int = 0
) -> tuple[Tensor, OutputLayers, Batch]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, sd: float = 1.0) -> Tensor:
        return torch.tensor(rng.normal(size=shape) * sd, dtype=torch.float32, requires_grad=True)

    x = rng.poisson(np.exp(rng.uniform(-4, top, (n, g)))) * (rng.random((n, g)) < 0.4)
    layers = OutputLayers(
        normal(g + rest, WIDTH, sd=0.3),
        normal(g + rest),
        normal(rows, g, sd=2.0),
        torch.tensor(rng.integers(0, rows, n)),
        normal(g, WIDTH, sd=0.3) if gate else None,
        normal(g) if gate else None,
    )
    log_library = torch.tensor(np.log(x.sum(1, keepdims=True) + 1.0), dtype=torch.float32)
    return normal(n, WIDTH), layers, _batch(x, log_library)


def _plain(f: Tensor, layers: OutputLayers, log_library: Tensor, x: Tensor) -> Tensor:
    """Compute the plain likelihood in float64 from the same numbers."""
    log_rho = F.log_softmax(f @ layers.weight.T + layers.bias, dim=-1)[:, : x.shape[1]]
    theta = layers.log_theta[layers.theta_row_n]
    if layers.gate_weight is None:
        return NegativeBinomial.from_decoded(Decoded(log_rho, log_library, theta)).log_prob(x).sum(-1)
    gate = F.linear(f, layers.gate_weight, layers.gate_bias)
    return (
        ZeroInflatedNegativeBinomial.from_decoded(Decoded(log_rho, log_library, theta, {"gate": gate}))
        .log_prob(x)
        .sum(-1)
    )


def _dense(
    f: Tensor, layers: OutputLayers, log_library: Tensor, x: Tensor, entries: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Compute the closed form in torch, that of devices or, with ``entries``, that of small data."""
    logits = F.linear(f, layers.weight, layers.bias)
    theta = layers.log_theta if len(layers.log_theta) == 1 else layers.log_theta[layers.theta_row_n]
    gate = None if layers.gate_weight is None else F.linear(f, layers.gate_weight, layers.gate_bias)
    return dense_log_likelihood(logits, log_library, theta, gate, x, entries)


def _leaves(f: Tensor, layers: OutputLayers, log_library: Tensor) -> tuple[list[Tensor], OutputLayers]:
    """Copy tensors in float64, for differentiation."""
    names = ("weight", "bias", "log_theta", "gate_weight", "gate_bias")
    parts = {name: getattr(layers, name) for name in names}
    copies = {name: None if t is None else t.detach().double().requires_grad_() for name, t in parts.items()}
    given = [t.detach().double().requires_grad_() for t in (f, log_library)]
    return [*given, *(t for t in copies.values() if t is not None)], replace(layers, **copies)


Form = Callable[[Tensor, OutputLayers, Tensor, Batch], Tensor]
FORMS: dict[str, Form] = {
    "compiled": lambda f, layers, log_library, batch: count_log_likelihood(
        f, layers, log_library, batch, training=False
    ),
    "closed": lambda f, layers, log_library, batch: _dense(f, layers, log_library, batch.x_ng),
    "gathered": lambda f, layers, log_library, batch: _dense(f, layers, log_library, batch.x_ng, batch.entries()),
}
# those that divide the counts into zeros, small and large ones
BY_COUNT = ["compiled", "gathered"]


def _both(
    f: Tensor, layers: OutputLayers, batch: Batch, weight_n: Tensor, form: Form = FORMS["compiled"]
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute value and gradients of a fast and of the plain form: value, features, library, then layers in order."""
    log_library = batch.log_library_n1.clone().requires_grad_()
    value = form(f, layers, log_library, batch)
    inputs = [f, log_library, layers.weight, layers.bias, layers.log_theta, layers.gate_weight, layers.gate_bias]
    mine = torch.autograd.grad((value * weight_n).sum(), [t for t in inputs if t is not None])
    leaves, exact = _leaves(f, layers, batch.log_library_n1)
    reference = _plain(leaves[0], exact, leaves[1], batch.x_ng.double())
    theirs = torch.autograd.grad((reference * weight_n.double()).sum(), leaves)
    return [value, *mine], [reference, *theirs]


def _assert_close(mine: list[Tensor], theirs: list[Tensor], rtol: float = 2e-5) -> None:
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(
            a.detach().double(), b.detach(), rtol=rtol, atol=rtol * float(b.detach().abs().max())
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("n", "g"), [(1, 1), (1, 300), (7, 63), (64, 130), (33, 1)])
def test_value_and_gradients_of_any_shape(n: int, g: int, gate: bool, form: str) -> None:
    f, layers, batch = _problem(n, g, gate=gate, seed=n)
    _assert_close(*_both(f, layers, batch, torch.ones(n), FORMS[form]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gate", [False, True])
def test_cells_can_have_different_weights(gate: bool, form: str) -> None:
    f, layers, batch = _problem(12, 80, gate=gate)
    _assert_close(*_both(f, layers, batch, torch.linspace(-1, 2, 12), FORMS[form]))


@pytest.mark.parametrize("form", FORMS)
def test_rest_logit_and_dispersion_per_batch(form: str) -> None:
    f, layers, batch = _problem(40, 70, gate=True, rest=True, rows=3)
    _assert_close(*_both(f, layers, batch, torch.ones(40), FORMS[form]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("log_theta", [-6.9, 0.0, 13.8])
@pytest.mark.parametrize("log_library", [-18.0, 0.0, 8.0, 13.0])
@pytest.mark.parametrize("largest", [1, 17, 1000, 1_000_000])
def test_hostile_ranges(gate: bool, log_theta: float, log_library: float, largest: int, form: str) -> None:
    f, layers, batch = _problem(6, 40, gate=gate)
    x = np.random.default_rng(1).integers(0, largest + 1, (6, 40)) * (np.arange(40) % 3 == 0)
    batch = _batch(x, torch.full((6, 1), log_library))
    layers = replace(layers, log_theta=torch.full((1, 40), log_theta, requires_grad=True))
    mine, theirs = _both(f, layers, batch, torch.ones(6), FORMS[form])
    np.testing.assert_allclose(mine[0].detach(), theirs[0].detach(), rtol=5e-6, atol=2e-4)
    for a, b in zip(mine[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-3)


@pytest.mark.parametrize("form", BY_COUNT)
def test_fractional_counts_use_gamma_functions(form: str) -> None:
    f, layers, batch = _problem(5, 30, gate=False)
    x = batch.x_ng.numpy() * 0.37
    _assert_close(*_both(f, layers, _batch(x, batch.log_library_n1), torch.ones(5), FORMS[form]))


@pytest.mark.parametrize("form", BY_COUNT)
@pytest.mark.parametrize("gate", [False, True])
def test_explicit_zeros_are_supported(gate: bool, form: str) -> None:
    f, layers, batch = _problem(5, 30, gate=gate)
    matrix = batch.counts.stored[1]
    data = matrix.data.clone()
    data[::3] = 0
    batch = replace(batch, counts=replace(batch.counts, matrix=replace(matrix, data=data)))
    _assert_close(*_both(f, layers, batch, torch.ones(5), FORMS[form]))


@pytest.mark.parametrize("form", FORMS)
def test_empty_cells_and_silent_genes(form: str) -> None:
    f, layers, batch = _problem(4, 30, gate=True)
    _assert_close(*_both(f, layers, _batch(np.zeros((4, 30)), batch.log_library_n1), torch.ones(4), FORMS[form]))


@pytest.mark.parametrize("gate", [False, True])
def test_bfloat16_products_change_the_gradient_by_their_rounding_only(
    gate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    f, layers, batch = _problem(64, 400, gate=gate)
    exact, _ = _both(f, layers, batch, torch.ones(64))
    monkeypatch.setattr(rule, "product_dtype", lambda *_, **__: torch.bfloat16)
    rounded, _ = _both(f, layers, batch, torch.ones(64))
    for a, b in zip(rounded, exact, strict=True):
        assert float((a - b).detach().norm() / b.detach().norm()) < 0.02
    assert not torch.equal(rounded[0], exact[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_propagate(bad: float) -> None:
    f, layers, batch = _problem(5, 30, gate=False)
    broken = f.detach().clone()
    broken[2, 0] = bad
    value = count_log_likelihood(broken, layers, batch.log_library_n1, batch, training=False)
    assert not torch.isfinite(value[2])
    assert torch.isfinite(value[[0, 1, 3, 4]]).all()


def test_columns_of_larger_tables_are_read() -> None:
    f, layers, batch = _problem(6, 5, gate=False, rows=3)
    reference = count_log_likelihood(f, layers, batch.log_library_n1, batch, training=False)
    # such as the batch, next to another covariate
    rows_n = torch.stack((layers.theta_row_n, 7 - layers.theta_row_n), dim=1)[:, 0]
    library_n1 = torch.cat((batch.log_library_n1, batch.log_library_n1 + 1.0), dim=1)[:, :1]
    found = count_log_likelihood(f, replace(layers, theta_row_n=rows_n), library_n1, batch, training=False)
    assert torch.equal(found, reference)


def test_two_autograd_graphs_do_not_share_memory() -> None:
    f, layers, batch = _problem(16, 50, gate=True)
    alone = torch.autograd.grad(
        count_log_likelihood(f, layers, batch.log_library_n1, batch, training=False).sum(), layers.weight
    )[0]
    first = count_log_likelihood(f, layers, batch.log_library_n1, batch, training=False)
    second = count_log_likelihood(2 * f, layers, batch.log_library_n1, batch, training=False)
    assert torch.equal(torch.autograd.grad(first.sum(), layers.weight)[0], alone)
    assert not torch.equal(torch.autograd.grad(second.sum(), layers.weight)[0], alone)


def test_number_of_threads_changes_no_bits() -> None:
    f, layers, batch = _problem(150, 90, gate=True)
    one, exact = _both(f, layers, batch, torch.ones(150))
    _assert_close(one, exact)
    for threads in (2, 4):
        torch.set_num_threads(threads)
        with OneThread():
            other, _ = _both(f, layers, batch, torch.ones(150))
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_buffers_are_reused() -> None:
    count_likelihood._Buffer.shelf.clear()
    f, layers, batch = _problem(10, 40, gate=False)
    for _ in range(5):
        count_log_likelihood(f, layers, batch.log_library_n1, batch, training=False).sum().backward()
    count_likelihood._Buffer._take_back()
    assert {key: len(kept) for key, kept in count_likelihood._Buffer.shelf.items()}[10, 40, torch.float32] == 1


def test_a_deleted_buffer_returns_to_the_shelf() -> None:
    first, second = (_Buffer(37, 11, torch.float32) for _ in range(2))
    where = {first.tensor.data_ptr(), second.tensor.data_ptr()}
    assert len(where) == 2
    del first, second
    again = [_Buffer(37, 11, torch.float32) for _ in range(3)]
    assert where < {buffer.tensor.data_ptr() for buffer in again}
    # a tensor that is too large to keep is freed
    large = _Buffer(1, _Buffer.most_bytes, torch.float32)
    gone = weakref.ref(large.tensor)
    del large
    assert gone() is None


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="timers of POSIX")
def test_no_interrupt_is_lost_when_a_buffer_is_deleted() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    delays = np.random.default_rng(0).uniform(5e-5, 3e-4, 300)
    lost, before = 0, signal.signal(signal.SIGALRM, stop)
    try:
        for delay in delays:
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                end = time.perf_counter() + 0.3
                while time.perf_counter() < end:
                    for _ in range(20):
                        _Buffer(5, 7, torch.float32)
                lost += 1
            except KeyboardInterrupt:
                pass
    finally:
        signal.signal(signal.SIGALRM, before)
    assert lost == 0
