"""A class from outside that returns something else than its base class says is named before the training begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vxpress as vx
from vxpress import extend
from vxpress.core.normal import DiagonalNormal
from vxpress.core.priors.fitting import build_prior, learn

Change = Callable[..., Any]


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    return ad.AnnData(rng.poisson(2.0, (60, 12)).astype(np.float32))


@pytest.fixture
def registered() -> Iterator[Callable[[str, Any], None]]:
    kinds: list[str] = []

    def register(kind: str, cls: Any) -> None:
        getattr(extend, f"register_{kind}")("trial", cls)
        kinds.append(kind)

    yield register
    for kind in kinds:
        extend.unregister(kind, "trial")  # type: ignore[arg-type]


CHOICES: dict[str, dict[str, Any]] = {
    "likelihood": {"likelihood": "trial"},
    "prior": {"prior": "trial"},
    "objective": {"objective": "trial"},
    "decoder": {"options": vx.tl.FitOptions(decoder="trial")},  # type: ignore[arg-type]
    "block": {"options": vx.tl.FitOptions(blocks=("trial",))},
    "source": {"options": vx.tl.FitOptions(source="trial")},  # type: ignore[arg-type]
}


class Prior(extend.Prior):
    def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
        return -0.5 * z.square().sum(-1)

    def sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None = None) -> Tensor:
        return torch.randn(n, self.n_latent, generator=generator)


class Body(extend.Body):
    def __init__(self, config: extend.ModelConfig, n_condition: int) -> None:
        super().__init__()
        self.n_features = config.n_latent

    def forward(self, z_nd: Tensor, s_nc: Tensor | None, noise: extend.Noise | None) -> Tensor:
        return z_nd


class Block(extend.NormalBlock):
    name = "trial"

    def prior(self, covariates: extend.Covariates) -> tuple[Tensor, Tensor]:
        return torch.tensor(0.0), torch.tensor(1.0)

    def enter(self, inputs: extend.DecoderInputs, value: Tensor) -> extend.DecoderInputs:
        return dataclasses.replace(inputs, log_library_n1=inputs.log_library_n1 + value)


class Objective(extend.Objective):
    def terms(self, model: Any, batch: Any, noise: Any, eps: Tensor | None = None) -> extend.Elbo:
        return extend.elbo(model, batch, noise, eps)

    def loss(self, terms: extend.Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        return -terms.value(weight).mean()

    def final(self, means: extend.Means) -> float:
        return means.elbo


class Bare(extend.Source):
    n_genes = 12

    @classmethod
    def of(cls, *arguments: object) -> extend.Source:
        return cls()

    def read(self, rows: Tensor) -> extend.Rows:
        return extend.Rows(rows, None, torch.zeros(len(rows), 12))


BASES: dict[str, type] = {
    "likelihood": extend.Poisson,
    "prior": Prior,
    "decoder": Body,
    "block": Block,
    "objective": Objective,
    "source": extend.Cells,
}


def changed(kind: str, method: str, change: Change) -> type:
    """Make a class in which one method returns what ``change`` makes of its value."""
    base = BASES[kind]
    found = vars(next(c for c in base.__mro__ if method in vars(c)))[method]
    if isinstance(found, property):
        return type("Changed", (base,), {method: property(lambda self: change(found.fget(self)))})  # type: ignore[misc]
    if isinstance(found, classmethod):
        return type("Changed", (base,), {method: classmethod(lambda cls, *a: change(found.__func__(cls, *a)))})
    return type("Changed", (base,), {method: lambda self, *a, **k: change(found(self, *a, **k))})


def _in_one_memory(batches: Iterator[extend.Batch]) -> Iterator[extend.Batch]:
    memory_ng = torch.empty(3, 12)
    for batch in batches:
        x_ng = memory_ng[: len(batch)].copy_(batch.x_ng)
        yield dataclasses.replace(batch, counts=extend.Rows(batch.counts.at, None, x_ng))


FAULTS: list[tuple[str, str, Change, str]] = [
    ("likelihood", "log_prob", lambda v: v.sum(-1), r"tensor of shape \(3,\); .*\(cells, genes\) = \(3, 12\)"),
    ("likelihood", "log_prob", lambda v: v.detach(), "without a gradient"),
    ("likelihood", "log_prob", lambda v: v * torch.nan, "NaN or infinite"),
    ("likelihood", "mean", lambda v: v[:, :1], r"shape \(3, 1\)"),
    ("likelihood", "zero_probability", lambda v: 0.0, "an instance of float"),
    ("likelihood", "log_rate", lambda v: v.sum(-1), r"shape \(3,\)"),
    ("likelihood", "expected_log1p", lambda v: v.sum(), r"shape \(\)"),
    ("likelihood", "draw", lambda v: v[0], r"shape \(3, 12\); .*\(2, 3, 12\)"),
    ("likelihood", "steps", lambda v: (v[0], None), "returned None"),
    ("likelihood", "at", lambda v: v.mean, "an instance of Tensor"),
    ("prior", "log_prob", lambda v: v[..., None], r"\(cells\) = \(3,\)"),
    ("prior", "sample", lambda v: v[:, 0], r"\(cells, dimensions\) = \(3, 10\)"),
    ("decoder", "forward", lambda v: v[:, :-1], r"shape \(3, 9\); .*\(cells, n_features\) = \(3, 10\)"),
    ("block", "prior", lambda v: (0.0, 1.0), "a pair of tensors"),
    ("block", "prior", lambda v: (v[0], -v[1]), "a variance that is not above 0"),
    ("block", "enter", lambda v: None, "returned None"),
    (
        "block",
        "enter",
        lambda v: dataclasses.replace(v, z_nd=v.z_nd.sum(-1)),
        r"z_nd .*\(cells, dimensions\) = \(3, 10\)",
    ),
    ("objective", "terms", lambda v: v.value(), "an instance of vx.extend.Elbo"),
    ("objective", "loss", lambda v: v[None], "one number"),
    ("objective", "loss", lambda v: v.item(), "an instance of float"),
    ("objective", "further", lambda v: [1.0], "a dict of tensors"),
    ("objective", "final", lambda v: None, "a number"),
    ("source", "of", lambda v: None, "an instance of vx.extend.Source"),
    ("source", "of", lambda v: Bare(), "a source without log_library_n1"),
    ("source", "read", lambda v: v.dense(), "an instance of vx.extend.Rows"),
    ("source", "read", lambda v: extend.Rows(v.at[1:], v.matrix), r"shape \(2, 12\)"),
    ("source", "read", lambda v: extend.Rows(v.at, None, v.dense()[:, 1:]), r"\(cells, genes\) = \(3, 12\)"),
    ("source", "read", lambda v: extend.Rows(v.at, None, -v.dense()), "negative counts"),
    ("source", "batches", _in_one_memory, "changed a minibatch after the next one was requested"),
]


@pytest.mark.parametrize(("kind", "method", "change", "found"), FAULTS)
def test_the_method_is_named_with_what_it_returned_and_what_is_expected(
    adata: ad.AnnData, registered: Change, kind: str, method: str, change: Change, found: str
) -> None:
    registered(kind, changed(kind, method, change))
    named = "sample" if method == "draw" else method  # the package calls sample
    before = adata.copy()
    with pytest.raises(ValueError, match=rf"'trial': Changed\.{named}.*{found}"):
        vx.tl.fit_vae(adata, max_epochs=1, n_latent=10, **CHOICES[kind])
    assert list(adata.obs) == list(before.obs)
    assert list(adata.uns) == list(before.uns)


@pytest.mark.parametrize("kind", ["prior", "decoder", "block", "objective"])
def test_an_error_in_a_method_is_shown_with_its_name(adata: ad.AnnData, registered: Change, kind: str) -> None:
    method = {"prior": "log_prob", "decoder": "forward", "block": "enter", "objective": "terms"}[kind]

    def fail(value: object) -> object:
        msg = "a mistake"
        raise IndexError(msg)

    registered(kind, changed(kind, method, fail))
    with pytest.raises(ValueError, match=rf"Changed\.{method}.* raised IndexError: a mistake") as caught:
        vx.tl.fit_vae(adata, max_epochs=1, n_latent=10, **CHOICES[kind])
    assert isinstance(caught.value.__cause__, IndexError)


def test_an_objective_of_several_samples_is_asked_for_their_number(adata: ad.AnnData, registered: Change) -> None:
    class Several(Objective):
        def terms(self, model: Any, batch: Any, noise: Any, eps: Tensor | None = None) -> extend.ImportanceTerms:
            return extend.importance_terms(model, batch, noise, 2, eps)

    registered("objective", Several)
    with pytest.raises(ValueError, match=r"sets self\.n_samples"):
        vx.tl.fit_vae(adata, max_epochs=1, objective="trial")  # type: ignore[arg-type]


def test_a_trial_leaves_the_fit_and_the_global_random_state_as_they_are(adata: ad.AnnData, registered: Change) -> None:
    class Drawing(extend.NegativeBinomial):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value)

    registered("likelihood", Drawing)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    weights = []
    for _ in range(2):
        vx.tl.fit_vae(adata, max_epochs=1, likelihood="trial")  # type: ignore[arg-type]
        weights.append(adata.obsm["X_vae"].copy())
    np.testing.assert_array_equal(*weights)
    assert torch.equal(state, torch.get_rng_state())


def test_a_prior_is_tried_with_conditions_when_it_is_learned_alone(adata: ad.AnnData, registered: Change) -> None:
    class Centred(Prior):
        def __init__(self, config: extend.PriorConfig, n_latent: int, n_inputs: int = 0) -> None:
            super().__init__(config, n_latent, n_inputs)
            self.centre = nn.Parameter(torch.zeros(max(1, config.n_conditions), n_latent))

        def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
            return super().log_prob(z if condition_n is None else z - self.centre[condition_n][None])

    registered("prior", Centred)
    data = adata.copy()
    data.obs["half"] = np.where(np.arange(len(data)) % 2, "a", "b")
    vx.tl.fit_vae(data, max_epochs=1)
    with pytest.raises(ValueError, match=r"Centred\.log_prob with conditions returned a tensor of shape \(1, 3\)"):
        vx.tl.fit_prior(data, "trial", condition_key="half")  # type: ignore[arg-type]


def test_a_prior_of_a_user_is_learned_alone_as_one_of_the_package(adata: ad.AnnData, registered: Change) -> None:
    class Wide(extend.Prior):
        def __init__(self, config: extend.PriorConfig, n_latent: int, n_inputs: int = 0) -> None:
            super().__init__(config, n_latent, n_inputs)
            self.log_scale = nn.Parameter(torch.tensor(0.7))

        def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
            return torch.distributions.Normal(0.0, self.log_scale.exp()).log_prob(z).sum(-1)

        def sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None = None) -> Tensor:
            return self.log_scale.exp() * torch.randn(n, self.n_latent, generator=generator)

    registered("prior", Wide)
    q = DiagonalNormal(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), torch.full((200, 5), 0.1))
    prior = build_prior(extend.PriorConfig("trial"), 5, 0)  # type: ignore[arg-type]
    learn(prior, q, None, seed=0)
    (log_scale,) = prior.parameters()
    assert log_scale.item() == pytest.approx(0.0, abs=0.1)
