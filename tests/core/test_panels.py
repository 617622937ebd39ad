"""Genes that were measured in some cells only: likelihood, encoder, start, training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse

from vxpress.core import rule
from vxpress.core.blocks import Z
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.inference.posterior import encode
from vxpress.core.likelihoods import NegativeBinomial
from vxpress.core.model import VAE, build
from vxpress.core.noise import Noise
from vxpress.core.start import start_at_components
from vxpress.core.training import train
from vxpress.core.training.closed_form import covers

N, G = 400, 30
# of the first panel the last third is missing, of the second the first third; the third is complete
MEASURED = torch.ones(3, G, dtype=torch.bool)
MEASURED[0, 2 * G // 3 :] = False
MEASURED[1, : G // 3] = False
CONFIG = ModelConfig(G, n_latent=2, n_hidden=16, n_panels=3)


def _simulated() -> tuple[Cells, Cells]:
    """Return cells of three panels, and the same cells as if all genes were measured."""
    rng = np.random.default_rng(5)
    z, slope, base = rng.normal(size=(N, 2)), rng.normal(size=(2, G)), rng.normal(size=G)
    rho = np.exp(z @ slope + base)
    rho /= rho.sum(1, keepdims=True)
    x = rng.poisson(600 * rho).astype(np.float32)
    panel_n = torch.arange(N) % 3
    partial = x * MEASURED[panel_n].numpy()

    def cells(counts: np.ndarray, code_n: torch.Tensor | None) -> Cells:
        covariates = Covariates(torch.zeros(N, 0, dtype=torch.int64), torch.zeros(N, 0), panel_n=code_n)
        log_library = torch.from_numpy(np.log(counts.sum(1, keepdims=True).clip(1)))
        return Cells(Counts.from_scipy(sparse.csr_matrix(counts)), log_library, covariates)

    return cells(partial, panel_n), cells(x, torch.full((N,), 2))


CELLS, WHOLE = _simulated()
ROWS = torch.arange(N)


def _model(config: ModelConfig = CONFIG) -> VAE:
    model = build(config, 0)
    assert model.panels is not None
    model.panels.set(MEASURED)
    return model


@pytest.fixture(scope="module")
def trained() -> VAE:
    model = _model()
    model.start_from(CELLS, ROWS)
    start_at_components(model, CELLS, ROWS)
    train(model, CELLS, ROWS[80:], ROWS[:80], TrainConfig(max_epochs=10, batch_size=64, learning_rate=0.01), seed=0)
    return model


def _with_counts_outside(cells: Cells) -> Cells:
    x_ng = cells.counts.dense(ROWS)
    panel_n = cells.covariates.panel_n
    assert panel_n is not None
    return replace(cells, counts=Counts.from_dense(x_ng + 50.0 * ~MEASURED[panel_n]))


def test_a_gene_that_was_not_measured_has_no_influence(trained: VAE) -> None:
    terms = []
    for cells in (CELLS, _with_counts_outside(CELLS)):
        batch = cells.batch(ROWS)
        q = trained.posterior(batch)
        terms.append((q[Z].loc, q[Z].scale, trained.log_likelihood(q.mean(), batch)["rna"]))
    for one, two in zip(*terms, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_shares_are_those_among_the_measured_genes() -> None:
    model, z_nd = _model().eval(), torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    batch = CELLS.batch(ROWS[:6])
    found = model.log_likelihood({Z: z_nd}, batch)["rna"]
    with torch.no_grad():
        whole = model.likelihood({Z: z_nd}, batch.covariates, torch.zeros(6, 1))
    assert isinstance(whole, NegativeBinomial)
    for n in range(6):
        inside = MEASURED[n % 3]
        share = whole.log_mean[n, inside] - whole.log_mean[n, inside].logsumexp(0)
        expected = NegativeBinomial(share + batch.log_library_n1[n], whole.log_theta[n, inside])
        torch.testing.assert_close(found[n], expected.log_prob(batch.x_ng[n, inside]).sum(), rtol=1e-4, atol=1e-3)


def test_a_complete_panel_gives_what_a_model_without_panels_gives() -> None:
    model, without = _model().eval(), build(replace(CONFIG, n_panels=0), 0).eval()
    without.load_state_dict({name: value for name, value in model.state_dict().items() if "panels" not in name})
    batch = WHOLE.batch(ROWS[:20])
    one, two = model.posterior(batch), without.posterior(batch)
    torch.testing.assert_close(one[Z].loc, two[Z].loc, rtol=1e-4, atol=1e-5)
    terms = (each.log_likelihood(one.mean(), batch)["rna"] for each in (model, without))
    torch.testing.assert_close(*terms, rtol=1e-4, atol=1e-3)


def test_with_a_remainder_the_share_outside_the_model_stays_in_the_sum() -> None:
    model = _model(replace(CONFIG, remainder=True)).eval()
    measured_ng = MEASURED[[0, 1]]
    location = torch.randn(2, G + 1, generator=torch.Generator().manual_seed(3))
    counted = model.decoder.output.log_counted(location, measured_ng).exp()[:, 0]
    log_rho, log_rest = model.decoder.output.locate(location, G)
    assert log_rest is not None
    torch.testing.assert_close(counted, (log_rho.exp() * measured_ng).sum(1) + log_rest.exp()[:, 0])


def test_the_start_finds_the_profile_of_all_genes() -> None:
    model = _model()
    model.start_from(CELLS, ROWS)
    found = model.decoder.location.bias.softmax(0)
    expected = WHOLE.counts.dense(ROWS).sum(0)
    torch.testing.assert_close((found * expected.sum() / expected).log(), torch.zeros(G), rtol=0, atol=0.15)


def test_cells_lie_where_they_would_lie_with_all_genes(trained: VAE) -> None:
    partial, whole = encode(trained, CELLS).mean_nd, encode(trained, WHOLE).mean_nd
    for panel in range(3):
        mine = np.arange(N) % 3 == panel
        for d in range(2):
            assert np.corrcoef(partial[mine, d], whole[mine, d])[0, 1] > 0.9
    # no shift between panels either, in standard deviations of the cells
    shift = np.abs((partial - whole).mean(0)) / whole.std(0)
    assert shift.max() < 0.2


def test_training_shows_some_cells_fewer_genes() -> None:
    model, batch = _model(), WHOLE.batch(ROWS)
    assert model.panels is not None
    model.panels.level_g.fill_(-1.0)
    seen, hidden = (model.panels.filled(batch, 0.5, noise).log_x_ng for noise in (None, Noise(0)))
    assert seen is not None
    assert hidden is not None
    torch.testing.assert_close(seen, batch.x_ng.log1p())
    gone = hidden == -1.0
    # a third of the other panels is the complete one
    assert abs(float(gone.any(1).float().mean()) - 1 / 3) < 0.08
    assert all(any(torch.equal(row, ~panel) for panel in MEASURED) for row in gone)


def test_a_step_without_autograd_is_not_for_panels() -> None:
    config = TrainConfig(max_epochs=1)
    assert not covers(_model(), CELLS, config)
    if not rule.captured_step(torch.device("cpu")):
        assert covers(build(replace(CONFIG, n_panels=0), 0), CELLS, config)


def test_panels_travel_with_the_cells() -> None:
    rows = torch.tensor([5, 1, 6])
    found = (CELLS.take(rows).covariates.panel_n, CELLS.to(torch.device("cpu")).batch(rows).covariates.panel_n)
    for panel_n in found:
        assert panel_n is not None
        assert panel_n.tolist() == [2, 1, 0]


def test_wrong_panels_are_refused() -> None:
    model = _model()
    assert model.panels is not None
    with pytest.raises(ValueError, match=r"\(panels, genes\) = \(3, 30\) is expected"):
        model.panels.set(MEASURED[:2])
    none = MEASURED.clone()
    none[1] = False
    with pytest.raises(ValueError, match=r"panels \[1\] have none"):
        model.panels.set(none)
    for change, message in (({"likelihood": "gaussian"}, "likelihood='nb'"), ({"norm": "batch"}, "norm='layer'")):
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **change)  # type: ignore[arg-type]
