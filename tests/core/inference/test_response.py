from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

from vxpress.bridge.fits.find_fit import find_fit
from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import Encoded
from vxpress.core.inference.response import decoder_response


def _covariates(adata: ad.AnnData) -> Covariates:
    return find_fit(adata, None, "vae").covariates.read(adata.obs)


def _encoded(adata: ad.AnnData) -> Encoded:
    return Encoded({"z": adata.obsm["X_vae"]}, {"z": adata.obsm["X_vae_var"]})


def test_a_dimension_the_decoder_does_not_read_has_no_response(fitted):
    model: Any = find_fit(fitted, None, "vae").model
    with torch.no_grad():
        model.decoder.body.linears[0].weight[:, 2] = 0.0
    found = decoder_response(model, _encoded(fitted), _covariates(fitted))
    assert found[2] == pytest.approx(0.0, abs=1e-7)
    assert (found[[0, 1, 3]] > 1e-4).all()
    assert (found <= 1.0).all()


def test_response_is_half_the_change_of_the_decoded_shares(fitted: ad.AnnData) -> None:
    model = find_fit(fitted, None, "vae").model
    encoded = _encoded(fitted)[:5]
    mean_nd, var_nd = encoded.mean_nd, encoded.var_nd
    covariates = _covariates(fitted)[torch.arange(5)]
    found = decoder_response(model, encoded, covariates)
    sd_d = np.sqrt(mean_nd.astype(np.float64).var(0) + var_nd.mean(0))
    for d in range(4):
        shares = []
        for sign in (-2, 2):
            z = torch.from_numpy(mean_nd.copy())
            z[:, d] = float(mean_nd[:, d].mean() + sign * sd_d[d])
            with torch.no_grad():
                distribution = model.likelihood({"z": z}, covariates, torch.zeros(5, 1))
            mean = distribution.mean[:, : model.config.n_genes]
            shares.append(mean / mean.sum(1, keepdim=True))
        expected = 0.5 * (shares[1] - shares[0]).abs().sum(1).mean()
        np.testing.assert_allclose(found[d], float(expected), rtol=1e-4)
