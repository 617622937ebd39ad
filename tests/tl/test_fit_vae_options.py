"""Likelihoods, dispersions, options and presets of a fit."""

from __future__ import annotations

from typing import get_args

import anndata as ad
import numpy as np
import pytest

import vxpress as vx
from vxpress.core.config import Preset
from vxpress.core.settings import PRESETS, preset_settings


def expected_weights(adata: ad.AnnData) -> dict[str, tuple[int, ...]]:
    """Shapes of the stored weights."""
    return {name: np.shape(value) for name, value in adata.uns["vae"]["weights"].items()}


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "gaussian", "bernoulli"])
@pytest.mark.parametrize("library", ["observed", "latent"])
def test_every_likelihood_fits_with_every_library(
    adata: ad.AnnData, quick: dict, likelihood: str, library: str
) -> None:
    adata.var["highly_variable"] = np.arange(60) < 45
    vx.tl.fit_vae(adata, "batch", likelihood=likelihood, library=library, **(quick | {"max_epochs": 6}))
    history = adata.uns["vae"]["history"]
    assert max(history["elbo_train"][1:]) > history["elbo_train"][0]
    assert np.isfinite(adata.layers["vae_normalized"]).all()
    assert (adata.obs["vae_library"] > 0).all()
    scale = "log1p_cp10k" if likelihood == "gaussian" else "composition"
    assert adata.uns["vae"]["params"]["scale"] == scale


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
def test_every_dispersion_fits(adata: ad.AnnData, quick: dict, dispersion: str) -> None:
    labels = "group" if dispersion == "gene-label" else None
    vx.tl.fit_vae(adata, "batch", dispersion=dispersion, labels_key=labels, **quick)
    weights = adata.uns["vae"]["weights"]
    shape = {"gene": (1, 60), "gene-batch": (2, 60), "gene-label": (3, 60)}.get(dispersion)
    if shape is None:
        assert weights["decoder.heads.dispersion.weight"].shape[0] == 60
    else:
        assert weights["decoder.log_dispersion"].shape == shape
    vx.tl.encode(adata)


@pytest.fixture(scope="module")
def by_default(_simulated: ad.AnnData) -> ad.AnnData:
    """A fit without any option except that the donors, which are random, are kept."""
    adata = _simulated.copy()
    options = vx.tl.FitOptions(screen_covariates=False)
    vx.tl.fit_vae(adata, "batch", categorical_covariate_keys=["donor"], options=options, denoised=False, **OPTIONLESS)
    return adata


OPTIONLESS = {"n_latent": 3, "n_hidden": 8, "max_epochs": 2, "batch_size": 64, "n_layers": 2}
BATCHES, DONORS = 2, 3


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        # layer norm keeps no running statistics
        ({"norm": "batch"}, {"encoder.body.norms.0.running_mean": (8,)}),
        ({"norm": "none"}, {"encoder.body.norms.0.weight": None, "decoder.body.norms.1.weight": None}),
        ({"encode_covariates": True}, {"encoder.body.linears.0.weight": (8, 60 + BATCHES + DONORS)}),
        (
            {"covariate_code": "embedding", "n_embedding": 5},
            {"decoder.body.linears.0.weight": (8, 3 + 2 * 5)},
        ),
        ({"condition_output": False}, {"decoder.location.weight": (60, 8)}),
        ({"decoder": "linear"}, {"decoder.body.linears.0.weight": None}),
        # the same network, trained otherwise
        ({"optimizer": "adam", "weight_decay": 0.1}, {}),
        ({"schedule": "constant"}, {}),
        ({"max_grad_norm": 1e-3}, {}),
        ({"dropout": 0.5}, {}),
        ({"thinning": 0.5}, {}),
        ({"start": "random"}, {}),
        ({"learning_rate": 1e-4}, {}),
    ],
)
def test_every_option_acts_and_is_recorded(
    adata: ad.AnnData, by_default: ad.AnnData, options: dict, changed: dict
) -> None:
    vx.tl.fit_vae(
        adata,
        "batch",
        categorical_covariate_keys=["donor"],
        options=vx.tl.FitOptions(screen_covariates=False, **options),
        denoised=False,
        **OPTIONLESS,
    )
    params = adata.uns["vae"]["params"]
    for name, value in options.items():
        assert (params["model"] | params["train"])[name] == value
    before, after = expected_weights(by_default), expected_weights(adata)
    assert {name: after.get(name) for name in changed} == changed
    assert not {name for name in changed if before.get(name) == changed[name]}
    if not changed:
        assert before == after
    assert np.abs(adata.obsm["X_vae"] - by_default.obsm["X_vae"]).max() > 1e-4
    vx.tl.encode(adata)


def test_the_default_number_of_dimensions_fits_a_panel_of_few_genes(adata: ad.AnnData) -> None:
    few = adata[:, :12].copy()
    vx.tl.fit_vae(few, max_epochs=1, denoised=False)
    assert few.obsm["X_vae"].shape == (few.n_obs, 12)
    with pytest.raises(ValueError, match="n_latent=20 exceeds the 12 modelled"):
        vx.tl.fit_vae(few, n_latent=20, max_epochs=1, denoised=False, key_added="wide")


@pytest.mark.parametrize("keep_best", [True, False])
def test_the_best_epoch_is_kept_or_the_last(adata: ad.AnnData, keep_best: bool) -> None:
    # at this rate the objective does not rise in every epoch
    options = vx.tl.FitOptions(keep_best=keep_best, learning_rate=0.3, refit_dispersion=False)
    vx.tl.fit_vae(adata, n_latent=3, n_hidden=8, max_epochs=8, batch_size=32, early_stopping=False, options=options)
    found = adata.uns["vae"]
    objective, kept = found["history"]["elbo_validation"], found["params"]["best_epoch"]
    assert np.argmax(objective) != len(objective) - 1
    assert kept == (np.argmax(objective) if keep_best else len(objective) - 1)


def test_preset_scvi_sets_the_defaults_of_scvi_tools(adata: ad.AnnData) -> None:
    vx.tl.fit_vae(adata, "batch", preset="scvi", max_epochs=3)
    params = adata.uns["vae"]["params"]
    model, train = params["model"], params["train"]
    expected = {
        "likelihood": "zinb", "n_hidden": 128, "n_latent": 10, "n_layers": 1, "dropout": 0.1, "norm": "batch",
        "norm_momentum": 0.01, "norm_eps": 1e-3, "dispersion": "gene", "encode_covariates": False,
        "condition_output": False, "remainder": False,
    }  # fmt: skip
    assert {name: model[name] for name in expected} == expected
    expected_training = {
        "batch_size": 128, "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 1e-6, "adam_eps": 0.01,
        "schedule": "constant", "kl_warmup": 400.0, "warmup_unit": "epochs", "early_stopping": False,
        "keep_best": False, "refit_dispersion": False,
    }  # fmt: skip
    assert {name: train[name] for name in expected_training} == expected_training
    assert params["dispersion_gain"] == 0
    assert adata.uns["vae"]["history"]["kl_weight"][-1] == pytest.approx(2 / 400)
    assert str(adata.uns["vae"]["diagnostics"]["verdict"]).startswith("under-trained")
    assert params["library_source"] == "modelled genes"


def test_preset_scvi_has_the_shapes_and_constants_of_scvi_tools(adata: ad.AnnData) -> None:
    scvi = pytest.importorskip("scvi")
    vx.tl.fit_vae(adata, "batch", preset="scvi", max_epochs=1)
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    module = scvi.model.SCVI(adata).module
    ours = expected_weights(adata)
    encoder, decoder = module.z_encoder, module.decoder
    linear, norm = encoder.encoder.fc_layers[0][0], encoder.encoder.fc_layers[0][1]
    assert ours["encoder.body.linears.0.weight"] == tuple(linear.weight.shape) == (128, 60)
    assert ours["decoder.body.linears.0.weight"] == tuple(decoder.px_decoder.fc_layers[0][0].weight.shape)
    assert ours["decoder.location.weight"] == tuple(decoder.px_scale_decoder[0].weight.shape)
    assert ours["decoder.heads.gate.weight"] == tuple(decoder.px_dropout_decoder.weight.shape)
    model = adata.uns["vae"]["params"]["model"]
    assert (model["norm_momentum"], model["norm_eps"]) == (norm.momentum, norm.eps)


@pytest.mark.parametrize(("n", "epochs"), [(500, 400), (20_000, 400), (40_000, 200), (10_000_000, 1)])
def test_preset_scvi_trains_as_many_epochs_as_scvi_tools(n: int, epochs: int) -> None:
    assert preset_settings("scvi").max_epochs(n - n // 10, n // 10) == epochs


def test_every_preset_can_be_named() -> None:
    assert set(get_args(Preset)) == {name for name in PRESETS if name is not None}


def test_options_show_what_was_given() -> None:
    assert repr(vx.tl.FitOptions(dropout=0.0, blocks=("a",))) == "FitOptions(dropout=0.0, blocks=('a',))"
    assert repr(vx.tl.FitOptions()) == "FitOptions()"
