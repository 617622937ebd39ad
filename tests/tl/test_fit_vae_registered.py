"""A prior and a decoder that were registered are accepted by name, with options of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vxpress as vx
from vxpress.bridge.fits.fit import Fit
from vxpress.core.bodies import DECODERS, Body
from vxpress.core.config import ModelConfig, PriorConfig
from vxpress.core.option import Options as OwnOptions
from vxpress.core.option import option
from vxpress.core.priors import PRIORS, Prior
from vxpress.tl import FitOptions


class Wide(Prior):
    """A normal distribution of a given width."""

    @dataclass(frozen=True)
    class Options(OwnOptions):
        width: float = option(1.0, low=0.1, high=10.0)
        n_components: int = 2

    def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
        return torch.distributions.Normal(0.0, self.options.width).log_prob(z).sum(-1)

    def conditional_sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None) -> Tensor:
        return self.options.width * torch.randn(n, self.n_latent, generator=generator, device=generator.device)


class Narrow(Body):
    """One hidden layer of a given width."""

    @dataclass(frozen=True)
    class Options(OwnOptions):
        units: int = 5
        bias: bool = True
        activation: str = "tanh"

    def __init__(self, config: ModelConfig, n_condition: int) -> None:
        super().__init__()
        own = config.decoder_options
        self.n_features = own.units
        self.linear = nn.Linear(config.n_latent + n_condition, own.units, bias=own.bias)
        self.activation = getattr(torch, own.activation)

    def forward(self, z_nd: Tensor, s_nc: Tensor | None, noise: Any) -> Tensor:
        h: Tensor = self.activation(self.linear(z_nd if s_nc is None else torch.cat((z_nd, s_nc), -1)))
        return h


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    PRIORS.register("wide", Wide)
    DECODERS.register("narrow", Narrow)
    yield
    PRIORS.remove("wide")
    DECODERS.remove("narrow")


def counts() -> ad.AnnData:
    return ad.AnnData(np.random.default_rng(0).poisson(2.0, (60, 9)).astype(np.float32))


def fit(**settings: Any) -> dict[str, Any]:
    adata = counts()
    vx.tl.fit_vae(adata, n_latent=2, n_hidden=8, max_epochs=1, denoised=False, progress=False, **settings)
    return dict(adata.uns["vae"])


def test_options_reach_the_class_and_the_stored_fit(registered: None, tmp_path: Path) -> None:
    options = FitOptions(prior_options={"width": 2}, decoder="narrow", decoder_options={"units": 3, "bias": False})  # type: ignore[arg-type]
    stored = fit(prior="wide", options=options)
    prior = {"name": "wide", "n_conditions": 0, "width": 2.0, "n_components": 2}
    assert stored["params"]["model"]["prior"] == prior
    assert stored["params"]["model"]["decoder_options"] == {"units": 3, "bias": False, "activation": "tanh"}
    assert stored["weights"]["decoder.body.linear.weight"].shape == (3, 2)
    ad.AnnData(uns={"vae": stored}).write_h5ad(tmp_path / "fit.h5ad")
    model = Fit.from_uns(ad.read_h5ad(tmp_path / "fit.h5ad").uns["vae"]).model
    assert model.config.prior == PriorConfig.of("wide", width=2.0)  # type: ignore[arg-type]
    assert model.config.decoder_options == Narrow.Options(units=3, bias=False)
    assert model.prior.options.width == 2.0


def test_options_have_the_defaults_of_the_class(registered: None) -> None:
    config = ModelConfig(n_genes=20, decoder="narrow", prior=PriorConfig("wide"))  # type: ignore[arg-type]
    assert config.decoder_options == Narrow.Options()
    assert config.prior.options == Wide.Options()
    assert hash(config) == hash(ModelConfig(n_genes=20, decoder="narrow", prior=PriorConfig.of("wide", width=1)))  # type: ignore[arg-type]


def test_a_fit_without_such_options_stores_none() -> None:
    model = fit()["params"]["model"]
    assert not {"decoder_options", "blocks"} & set(model)
    assert model["prior"] == {"name": "normal", "n_conditions": 0, "n_components": 50, "from_cells": False}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"prior": "wide", "prior_options": {"widht": 2}}, ValueError, r"prior_options holds 'widht'.* prior='wide'\. Did you mean 'width'\?"),
        ({"prior": "wide", "prior_options": {"rank": 2}}, ValueError, r"It has 'width', 'n_components'\."),
        ({"prior": "wide", "prior_options": {"width": "x"}}, ValueError, r"prior_options: width='x' was given; a number from 0\.1 to 10 is"),
        ({"prior": "wide", "prior_options": {"width": 99}}, ValueError, r"width=99 was given; a number from 0\.1 to 10"),
        ({"prior": "wide", "prior_options": 3}, TypeError, r"prior_options=3 was given; a dict with the options of prior='wide'"),
        ({"prior": "wide", "prior_options": {"n_components": 3}, "prior_components": 4}, ValueError, "the same option"),
        ({"prior": "vamp", "prior_options": {"from_cells": True}}, ValueError, r"'from_cells', which is not .* It has 'n_components'\."),
        ({"prior_options": {"n_components": 3}}, ValueError, r"not an option of prior='normal'\. It has none\."),
        ({"decoder": "narrow", "decoder_options": {"bias": 1}}, ValueError, r"bias=1 was given; True or False"),
        ({"decoder": "narrow", "decoder_options": {"activation": 1}}, ValueError, r"activation=1 was given; a string"),
        ({"decoder": "narrow", "decoder_options": {"units": 2.5}}, ValueError, r"decoder_options: units=2\.5 was given; a whole number "),
        ({"decoder_options": {"units": 3}}, ValueError, r"'units', which is not an option of decoder='mlp'\. It has none\."),
        ({"blocks": "shift"}, ValueError, r"blocks='shift' is not known; none is registered, see vx\.extend\.register_block\."),
        ({"blocks": 3}, ValueError, r"blocks=3 was given; a list is expected"),
        ({"blocks": ["z"]}, ValueError, r"blocks=\('z',\) names \['z'\], which other settings switch on"),
        ({"blocks": ("library",)}, ValueError, r"names \['library'\], which other settings switch on"),
        ({"decoder": "norrow"}, ValueError, r"decoder='norrow' is not known; choose one of 'mlp', .*'narrow'"),
    ],
)  # fmt: skip
def test_options_that_a_class_does_not_take_are_refused(
    registered: None, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    prior = settings.pop("prior", None)
    adata = counts()
    with pytest.raises(error, match=message):
        vx.tl.fit_vae(adata, prior=prior, options=FitOptions(**settings))
    assert not adata.uns


def test_a_registered_prior_is_learned_on_a_fit(registered: None) -> None:
    adata = counts()
    vx.tl.fit_vae(adata, n_latent=2, n_hidden=8, max_epochs=1, denoised=False, progress=False)
    with pytest.raises(ValueError, match=r"prior='wid' is not known; choose one of .*'wide'"):
        vx.tl.fit_prior(adata, "wid")  # type: ignore[arg-type]
