"""Registering a class: what is refused, names, and what a fit says of classes that are missing or others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vxpress as vx
from vxpress import extend
from vxpress._cli import main
from vxpress.core.model import build

from ._outside import EXTENSIONS, QUICK, Activity, Geometric, Laplace, Options, Powers, Renyi, model_of


def _incomplete_likelihood() -> type:
    class Incomplete(extend.Likelihood):
        @classmethod
        def from_decoded(cls, decoded: extend.Decoded) -> extend.Likelihood:
            raise NotImplementedError

    return Incomplete


def _subclass(base: type, **members: Any) -> type:
    return type("Mine", (base,), members)


def _without_default() -> type:
    return dataclasses.make_dataclass("Options", [("scale", float)], bases=(extend.Options,), frozen=True)


def _two(self: object, a: int, b: int) -> None: ...


def _method(self: object, *arguments: object) -> None: ...


@pytest.mark.parametrize(
    ("register", "cls", "error", "message"),
    [
        (extend.register_likelihood, _incomplete_likelihood(), TypeError, r"Incomplete does not define zero_probability, .* and draw\. .*vx\.extend\.Likelihood"),
        (extend.register_likelihood, nn.Linear, TypeError, r"the class Linear\(Module\); a subclass is expected: class Linear\(vx\.extend\.Likelihood\)"),
        (extend.register_likelihood, Geometric(torch.zeros(2)), TypeError, r"an instance of Geometric; a subclass"),
        (extend.register_likelihood, extend.Likelihood, TypeError, r"is the base class itself"),
        (extend.register_likelihood, _subclass(Geometric, output=extend.Shares), TypeError, r"output is <class .*: write output = Shares\(\)"),
        (extend.register_likelihood, _subclass(Geometric, heads=["gate"]), TypeError, r"heads is \['gate'\]; a dict of start values"),
        (extend.register_prior, _subclass(extend.Prior, log_prob=_method), TypeError, r"does not define conditional_sample\."),
        (extend.register_prior, _subclass(Laplace, analytic=True), TypeError, r"does not define kl\."),
        (extend.register_prior, _subclass(Laplace, __init__=_two), TypeError, r"cannot be called as Mine\(config, n_latent, n_inputs\)"),
        (extend.register_prior, _subclass(Laplace, Options=dict), TypeError, r"Options is <class 'dict'>; a frozen dataclass is expected"),
        (extend.register_decoder, _subclass(extend.Body), TypeError, r"does not define __init__ and forward\."),
        (extend.register_decoder, _subclass(Powers, Options=_subclass(extend.Options)), TypeError, r"Options is Mine, which is not a frozen dataclass"),
        (extend.register_prior, _subclass(Laplace, Options=_without_default()), TypeError, r"Options has no default for scale"),
        (extend.register_decoder, _subclass(Powers, forward=_two), TypeError, r"Mine\.forward\(.*\) does not take the arguments of vx\.extend\.Body\.forward\(self, z_nd, s_nc, noise\)"),
        (extend.register_objective, _subclass(Renyi, loss=_two), TypeError, r"Objective\.loss\(self, terms, weight, target\)"),
        (extend.register_block, _subclass(Activity, name="other"), TypeError, r"name is 'other'; .* name = 'mine'"),
        (extend.register_block, _subclass(extend.Block, name="mine"), TypeError, r"log_prior, prior_mean, sample_prior and enter"),
        (extend.register_block, _subclass(extend.NormalBlock, name="mine"), TypeError, r"does not define prior and enter"),
        (extend.register_objective, _subclass(extend.Objective, loss=_method), TypeError, r"does not define terms and final"),
        (extend.register_source, _subclass(extend.Source), TypeError, r"does not define n_genes, of and read"),
    ],
)  # fmt: skip
def test_an_incomplete_class_is_refused(
    register: Callable[..., None], cls: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        register("mine", cls)
    for kind in EXTENSIONS:
        with pytest.raises(ValueError, match="is not known"):
            extend.unregister(kind, "mine")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "replace", "message"),
    [
        ("nb", False, "The likelihood 'nb' belongs to the package"),
        ("nb", True, "The likelihood 'nb' belongs to the package"),
        ("a name", False, "cannot name a likelihood"),
        ("geometric", False, "named 'geometric' is already registered"),
    ],
)
def test_names_are_checked(name: str, replace: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extend.register_likelihood(name, _subclass(Geometric), replace=replace)


@pytest.mark.parametrize("name", ["var", "activity_var"])
def test_a_block_does_not_take_the_slot_of_a_variance(name: str) -> None:
    with pytest.raises(ValueError, match="holds the posterior variance of z or of a block"):
        extend.register_block(name, _subclass(Activity, name=name))


def test_an_unknown_block_lists_those_that_can_be_switched_on(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="blocks='x' is not known; choose one of 'activity'"):
        vx.tl.fit_vae(adata, options=Options(blocks=("x",)))


def test_a_linear_decoder_of_another_name_writes_its_loadings(adata: ad.AnnData) -> None:
    class Same(extend.Body):
        receives_condition, has_loadings = False, True

        def __init__(self, config: extend.ModelConfig, n_condition: int) -> None:
            super().__init__()
            self.n_features = config.n_latent

        def forward(self, z_nd: Tensor, s_nc: Tensor | None, noise: extend.Noise | None) -> Tensor:
            return z_nd

    extend.register_decoder("same", Same)
    try:
        vx.tl.fit_vae(adata, "batch", **QUICK, options=Options(decoder="same"))
        weight_gd = model_of(adata).decoder.location.weight.detach().numpy()[: adata.n_vars, : QUICK["n_latent"]]
    finally:
        extend.unregister("decoder", "same")
    np.testing.assert_array_equal(adata.varm["X_vae_loadings"], weight_gd)


def test_only_one_block_infers_the_size_factor(adata: ad.AnnData) -> None:
    extend.register_block("size", _subclass(Activity, name="size", infers_library=True))
    try:
        with pytest.raises(ValueError, match="'library' and 'size' are latent blocks that infer the size factor"):
            vx.tl.fit_vae(adata, library="latent", options=Options(blocks=("size",)))
    finally:
        extend.unregister("block", "size")


def test_a_decoder_that_does_not_name_its_conditioned_weights_says_so_at_a_new_category(adata: ad.AnnData) -> None:
    extend.register_decoder("silent", _subclass(Powers, conditioned=extend.Body.conditioned))
    try:
        query = adata[:30].copy()
        query.obs["batch"] = "new"
        vx.tl.fit_vae(adata, "batch", **QUICK, options=Options(decoder="silent"))
        with pytest.raises(
            ValueError, match=r"weight 'decoder\.body\.linear\.weight' depend .* conditioned\(\) of its class"
        ):
            vx.tl.encode(query, adata)
    finally:
        extend.unregister("decoder", "silent")


def test_a_class_of_the_package_cannot_be_removed() -> None:
    with pytest.raises(ValueError, match="The likelihood 'nb' belongs to the package and cannot be removed"):
        extend.unregister("likelihood", "nb")
    with pytest.raises(ValueError, match="kind='likelyhood' is not known; choose one of 'likelihood', 'prior'"):
        extend.unregister("likelyhood", "geometric")  # type: ignore[arg-type]


def test_the_same_class_may_be_registered_again() -> None:
    """As after a second run of a cell of a notebook."""
    again = type("Geometric", (extend.Poisson,), {"__module__": Geometric.__module__, "__qualname__": "Geometric"})
    extend.register_likelihood("geometric", again)
    extend.register_likelihood("geometric", Geometric)


def test_a_fit_of_another_class_with_the_same_name_is_not_called_damaged(fits: dict[str, ad.AnnData]) -> None:
    class Fewer(Powers):
        @dataclass(frozen=True)
        class Options(extend.Options):
            power: int = extend.option(2, low=1, high=5)

    extend.register_decoder("powers", Fewer, replace=True)
    try:
        message = r"uses the decoder 'powers', and was made with another class of this name .* 'power'"
        with pytest.raises(ValueError, match=message) as caught:
            vx.tl.log_likelihood(fits["decoder"].copy())
        assert "is damaged" not in str(caught.value)
    finally:
        extend.register_decoder("powers", Powers, replace=True)


def test_blocks_are_several_names(adata: ad.AnnData) -> None:
    for blocks, message in (
        (3, "a list is expected"),
        (("activity", "activity"), "twice"),
        (("z",), "which other settings switch on"),
        (("library",), "which other settings switch on"),
    ):
        with pytest.raises(ValueError, match=message):
            vx.tl.fit_vae(adata, options=Options(blocks=blocks))  # type: ignore[arg-type]
        vx.tl.fit_vae(adata, options=Options(blocks=["activity"]), **{**QUICK, "max_epochs": 1}, denoised=False)  # type: ignore[arg-type]
    assert adata.uns["vae"]["params"]["model"]["blocks"].tolist() == ["activity"]


def test_draws_of_blocks_are_in_the_order_of_the_options() -> None:
    class Second(Activity):
        name = "second"

    extend.register_block("second", Second)
    try:
        config = extend.ModelConfig(5, n_latent=2, latent_library=True, blocks=("second", "activity"))
        assert list(build(config, 0).blocks) == ["z", "library", "second", "activity"]
    finally:
        extend.unregister("block", "second")


def test_the_command_line_of_a_process_that_registered_a_class_takes_its_name(
    adata: ad.AnnData, tmp_path: Path
) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    of_fit = ["--max-epochs", "1", "--n-hidden", "8", "--n-latent", "2", "--no-denoised"]
    chosen = ["--likelihood", "geometric", "--prior", "laplace", "--decoder", "powers", "--objective", "renyi"]
    target = tmp_path / "fitted.h5ad"
    assert main(["fit", str(tmp_path / "cells.h5ad"), "-o", str(target), *of_fit, *chosen]) == 0
    params = ad.read_h5ad(target).uns["vae"]["params"]
    assert (params["model"]["likelihood"], params["model"]["decoder"]) == ("geometric", "powers")
