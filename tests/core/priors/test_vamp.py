from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.special import logsumexp

from vxpress.core import rule
from vxpress.core.config import ModelConfig, PriorConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts
from vxpress.core.model import build
from vxpress.core.networks import Noise
from vxpress.core.normal import DiagonalNormal
from vxpress.core.objectives import elbo
from vxpress.core.priors import sampled_kl
from vxpress.core.query.surgery import extend, new_weights
from vxpress.core.training.optimizer import Optimizer

N, G, K = 30, 12, 5


def _model(**settings: Any) -> tuple[Any, Cells]:
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(2.0, size=(N, G)).astype(np.float32))
    covariates = Covariates(
        torch.from_numpy(rng.integers(3, size=(N, 1))), torch.from_numpy(rng.normal(size=(N, 1)).astype(np.float32))
    )
    library = torch.from_numpy(np.log(np.asarray(counts.sum(1)))).float()
    config = ModelConfig(
        G,
        n_latent=3,
        n_hidden=8,
        n_categories=(3,),
        has_batch=True,
        n_continuous=1,
        prior=PriorConfig.of("vamp", n_components=K),
        norm="batch",
        **settings,
    )
    model, cells = build(config, 1), Cells(Counts.from_scipy(counts), library, covariates)
    model.start_blocks(cells, torch.arange(N), torch.Generator().manual_seed(0))
    return model, cells


@pytest.mark.parametrize("encode_covariates", [False, True])
@pytest.mark.parametrize("code", ["one-hot", "embedding"])
def test_density_is_the_mean_of_the_posteriors_of_pseudo_inputs(encode_covariates: bool, code: str) -> None:
    model, cells = _model(encode_covariates=encode_covariates, covariate_code=code)
    # in training mode, too, the encoder runs as in evaluation
    model.train()
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = model.prior.log_prob(z).detach().numpy()
    assert model.encoder.training
    model.eval()
    # direct computation: posterior of each pseudo-input at average covariates, dimensions summed before components
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:K]
    inputs = cells.batch(rows).x_ng.log1p()
    s = None
    if encode_covariates:
        each = [model.conditioner(Covariates(torch.full((K, 1), b), torch.zeros(K, 1))) for b in range(3)]
        s = torch.stack(each).mean(0)
        inputs = torch.cat((inputs, s), dim=1)
    with torch.no_grad():
        q = model.encoder.after_first(model.encoder.body.linears[0](inputs), s)
    loc, scale = q.loc.double().numpy(), q.scale.double().numpy()
    parts = -0.5 * (((z.numpy()[:, None] - loc) / scale) ** 2 + np.log(2 * np.pi) + 2 * np.log(scale)).sum(-1)
    np.testing.assert_allclose(found, logsumexp(parts, axis=1) - np.log(K), rtol=1e-5)


def test_a_cell_equal_to_all_pseudo_inputs_has_no_divergence() -> None:
    model, cells = _model()
    model.eval()
    with torch.no_grad():
        model.prior.pseudo_kg.copy_(cells.batch(torch.zeros(K, dtype=torch.int64)).x_ng.log1p())
        q = model.posterior(cells.batch(torch.tensor([0])))["z"]
    assert abs(sampled_kl(model.prior, q, 20).mean) < 1e-4


def test_the_encoder_is_registered_once_and_copies_use_their_own() -> None:
    model, _ = _model()
    assert not any(".prior." in name and "encoder" in name for name in model.state_dict())
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))
    twin = copy.deepcopy(model)
    z = torch.zeros(1, 3)
    with torch.no_grad():
        before = model.prior.log_prob(z)
        for p in twin.encoder.parameters():
            p.add_(0.3)
    assert torch.equal(model.prior.log_prob(z), before)
    assert not torch.equal(twin.prior.log_prob(z), before)


def test_gradients_of_model_and_prior_reach_the_optimizer() -> None:
    # the compiled first layer writes its gradient itself, and the gradient of the pseudo-inputs is added
    def gradient(*, plain: bool) -> torch.Tensor:
        model, cells = _model(dropout=0.0)
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        Optimizer(TrainConfig(1), parameters, 10)
        with rule.plain() if plain else nullcontext():
            terms = elbo(model, cells.batch(torch.arange(N)), Noise(0), torch.zeros(N, 3))
            (-terms.value().mean()).backward()
        return torch.cat([cast("torch.Tensor", p.grad).reshape(-1) for p in parameters])

    found, exact = gradient(plain=False), gradient(plain=True)
    assert float((found - exact).norm() / exact.norm()) < 1e-4


def test_added_batches_do_not_change_the_prior() -> None:
    for settings in ({}, {"encode_covariates": True}, {"encode_covariates": True, "covariate_code": "embedding"}):
        model, _ = _model(**settings)
        model.eval()
        z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        wider = extend(model, [2])
        torch.testing.assert_close(wider.prior.log_prob(z), model.prior.log_prob(z), rtol=1e-4, atol=1e-4)
        # learning new categories does not change it either, even if the model was stored in between
        again = build(wider.config, 5)
        again.load_state_dict(wider.state_dict())
        with torch.no_grad():
            for name, mask in new_weights(again, [2]).items():
                again.get_parameter(name)[mask] += 1.0
        again.eval()
        torch.testing.assert_close(again.prior.log_prob(z), model.prior.log_prob(z), rtol=1e-4, atol=1e-4)


def test_components_from_cells_are_widened_posteriors() -> None:
    from vxpress.core.priors.fitting import build_prior

    prior: Any = build_prior(PriorConfig.of("vamp", n_components=4), 2, 0)
    q = DiagonalNormal(torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]]), torch.full((4, 2), 0.2))
    prior.start_from_posteriors(q, None, torch.Generator().manual_seed(0))
    loc, scale = prior.components()
    assert sorted(map(tuple, loc.tolist())) == sorted(map(tuple, q.loc.tolist()))
    assert bool((scale > 0.2).all())
