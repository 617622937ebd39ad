"""Extension from outside: a likelihood, prior, decoder, latent block, objective and data source that are defined here alone.

Each is registered and used through the public functions like one of the package.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import vxpress as vx
from vxpress import extend
from vxpress._cli import main
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import read_query
from vxpress.core.model import build

# the classes of a user


class Geometric(extend.Likelihood):
    """Geometric counts with variance mu + mu^2."""

    def __init__(self, log_mean: Tensor) -> None:
        self.log_mean = log_mean
        super().__init__(log_mean.shape)

    @classmethod
    def from_decoded(cls, decoded: extend.Decoded) -> Geometric:
        return cls(decoded.location_ng + decoded.log_library_n1)

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean + self.mean.square()

    @property
    def zero_probability(self) -> Tensor:
        return torch.sigmoid(-self.log_mean)

    @property
    def log_rate(self) -> Tensor:
        return self.log_mean

    @property
    def log_tail(self) -> Tensor:
        """The log of P(X > 0) = mu / (1 + mu)."""
        return nn.functional.logsigmoid(self.log_mean)

    def log_prob(self, value: Tensor) -> Tensor:
        return value * self.log_tail + nn.functional.logsigmoid(-self.log_mean)

    def expected_log1p(self, log_library_n1: Tensor) -> Tensor:
        return extend.expected_log1p((self.log_mean + log_library_n1).exp(), torch.log1p)

    def at(self, *index: Tensor | slice) -> Geometric:
        return Geometric(self.log_mean[index])

    def steps(self, value: Tensor) -> tuple[Tensor, Tensor]:
        below, upto = value.double().ceil().clamp_min(0.0), (value.double().floor() + 1).clamp_min(0.0)
        return -torch.expm1(below * self.log_tail.double()), -torch.expm1(upto * self.log_tail.double())

    def draw(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(shape, generator=generator).clamp_min(1e-7)
        return (u.log() / self.log_tail).floor()


class Laplace(extend.Prior):
    """Independent Laplace distributions."""

    @dataclass(frozen=True)
    class Options(extend.Options):
        scale: float = extend.option(1.0, low=0.1, high=10.0)

    def log_prob(self, z: Tensor, condition_n: Tensor | None = None) -> Tensor:
        scale = self.options.scale
        return -(z.abs() / scale + math.log(2 * scale)).sum(-1)

    def sample(self, n: int, generator: torch.Generator, condition_n: Tensor | None = None) -> Tensor:
        u = torch.rand(2, n, self.n_latent, generator=generator, device=generator.device).clamp_min(1e-7).log()
        return self.options.scale * (u[0] - u[1])


class Powers(extend.Body):
    """z, its squares and so on, through one linear layer."""

    @dataclass(frozen=True)
    class Options(extend.Options):
        degree: int = extend.option(2, low=1, high=5)

    def __init__(self, config: extend.ModelConfig, n_condition: int) -> None:
        super().__init__()
        self.degree, self.n_features = config.decoder_options.degree, config.n_hidden
        self.linear = nn.Linear(self.degree * config.n_latent + n_condition, config.n_hidden)

    def conditioned(self) -> Iterator[str]:
        yield "linear.weight"

    def forward(self, z_nd: Tensor, s_nc: Tensor | None, noise: extend.Noise | None) -> Tensor:
        parts = [z_nd**power for power in range(1, self.degree + 1)]
        return torch.tanh(self.linear(torch.cat(parts if s_nc is None else [*parts, s_nc], dim=-1)))


class Activity(extend.NormalBlock):
    """One number per cell that moves z along a learned direction."""

    name = "activity"
    direction_d: Tensor

    def add_prior(self) -> None:
        self.direction_d = nn.Parameter(torch.ones(self.config.n_latent))

    def prior(self, covariates: extend.Covariates) -> tuple[Tensor, Tensor]:
        return torch.tensor(0.5), torch.tensor(2.0)

    def enter(self, inputs: extend.DecoderInputs, value: Tensor) -> extend.DecoderInputs:
        return dataclasses.replace(inputs, z_nd=inputs.z_nd + value * self.direction_d)


class Renyi(extend.Objective):
    """The bound of order 1/2 of Li & Turner (2016), from three samples: 2 log mean_k w_k^(1/2)."""

    def __init__(self, config: extend.TrainConfig, model: extend.VAE) -> None:
        super().__init__(config, model)
        self.n_samples = 3

    def terms(
        self, model: extend.VAE, batch: extend.Batch, noise: extend.Noise, eps: Tensor | None = None
    ) -> extend.ImportanceTerms:
        return extend.importance_terms(model, batch, noise, 3, eps)

    def bound(self, terms: extend.Elbo, weight: float | Tensor) -> Tensor:
        assert isinstance(terms, extend.ImportanceTerms)
        return 2.0 * ((0.5 * terms.log_weight(weight)).logsumexp(0) - math.log(3))

    def loss(self, terms: extend.Elbo, weight: float | Tensor, target: float | Tensor) -> Tensor:
        return -self.bound(terms, weight).mean()

    def further(self, terms: extend.Elbo) -> dict[str, Tensor]:
        return {"renyi": self.bound(terms, self.config.beta).sum()[None]}

    def final(self, means: extend.Means) -> float:
        return means.further["renyi"][0]


class Counting(extend.Source):
    """Counts in memory; counts the cells that are read."""

    n_read = 0

    def __init__(self, counts: extend.Counts, log_library_n1: Tensor, covariates: extend.Covariates) -> None:
        self.counts, self.log_library_n1, self.covariates = counts, log_library_n1, covariates

    @classmethod
    def of(
        cls, counts: extend.Counts, log_library_n1: Tensor, covariates: extend.Covariates, device: torch.device
    ) -> Counting:
        return cls(counts, log_library_n1, covariates)

    @property
    def n_genes(self) -> int:
        return self.counts.n_genes

    def read(self, rows: Tensor) -> extend.Rows:
        Counting.n_read += len(rows)
        return extend.Rows(rows, self.counts)


class Extension(NamedTuple):
    register: Callable[..., None]
    name: str
    cls: type
    settings: dict[str, Any]
    recorded: dict[str, Any]


Options = vx.tl.FitOptions
EXTENSIONS = {
    "likelihood": Extension(
        extend.register_likelihood, "geometric", Geometric,
        {"likelihood": "geometric"}, {"model": {"likelihood": "geometric"}},
    ),
    "prior": Extension(
        extend.register_prior, "laplace", Laplace,
        {"prior": "laplace", "options": Options(prior_options={"scale": 0.5})},
        {"model": {"prior": {"name": "laplace", "n_conditions": 0, "scale": 0.5}}},
    ),
    "decoder": Extension(
        extend.register_decoder, "powers", Powers,
        {"options": Options(decoder="powers", decoder_options={"degree": 3})},
        {"model": {"decoder": "powers", "decoder_options": {"degree": 3}}},
    ),
    "block": Extension(
        extend.register_block, "activity", Activity,
        {"options": Options(blocks=("activity",))}, {"model": {"blocks": ["activity"]}},
    ),
    "objective": Extension(
        extend.register_objective, "renyi", Renyi, {"objective": "renyi"}, {"train": {"objective": "renyi"}},
    ),
    # where counts are read from is not part of a fit
    "source": Extension(extend.register_source, "counting", Counting, {"options": Options(source="counting")}, {}),
}  # fmt: skip


def _register(kind: str) -> None:
    EXTENSIONS[kind].register(EXTENSIONS[kind].name, EXTENSIONS[kind].cls)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    for kind in EXTENSIONS:
        _register(kind)
    try:
        yield
    finally:
        for kind, extension in EXTENSIONS.items():
            extend.unregister(kind, extension.name)


QUICK = {"n_latent": 3, "n_hidden": 8, "max_epochs": 6, "batch_size": 32}


@pytest.fixture(scope="module")
def fits(_registered: None, _simulated: ad.AnnData) -> dict[str, ad.AnnData]:
    """Return the same cells with a fit of each extension."""
    found = {}
    for kind, extension in EXTENSIONS.items():
        found[kind] = _simulated.copy()
        vx.tl.fit_vae(found[kind], "batch", **QUICK, **extension.settings)
    return found


@pytest.fixture(scope="module")
def others() -> ad.AnnData:
    return vx.datasets.simulate(80, 60, n_groups=3, n_batches=2, library_mean=300, rng=2)


@pytest.fixture(params=EXTENSIONS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fit(fits: dict[str, ad.AnnData], kind: str) -> ad.AnnData:
    return fits[kind].copy()


def _model(adata: ad.AnnData) -> extend.VAE:
    return Fit.from_uns(adata.uns["vae"]).model


def _as_recorded(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _as_recorded(value) for name, value in found.items()}
    return found.tolist() if isinstance(found, np.ndarray) else found


# what holds for each


def test_a_fit_records_its_name_and_options(fit: ad.AnnData, kind: str) -> None:
    for part, expected in EXTENSIONS[kind].recorded.items():
        params = _as_recorded(fit.uns["vae"]["params"][part])
        assert {name: params[name] for name in expected} == expected
    history = fit.uns["vae"]["history"]
    assert all(np.isfinite(values).all() for values in history.values())
    assert max(history["elbo_validation"][1:]) > history["elbo_validation"][0]
    assert fit.layers["vae_normalized"].shape == fit.shape
    assert fit.uns["vae"]["diagnostics"]["verdict"]


def test_a_fit_is_stored_and_used_again(fit: ad.AnnData, adata: ad.AnnData, tmp_path: Path) -> None:
    fit.write_h5ad(tmp_path / "fit.h5ad")
    again = ad.read_h5ad(tmp_path / "fit.h5ad")
    vx.save_model(again, tmp_path / "fit.safetensors")
    model = vx.load_model(tmp_path / "fit.safetensors")
    query = adata[:40].copy()
    vx.tl.encode(query, model)
    np.testing.assert_allclose(query.obsm["X_vae"], fit.obsm["X_vae"][:40], rtol=1e-4, atol=1e-5)
    vx.tl.denoise(again, key_added="again")
    np.testing.assert_allclose(again.layers["again"], fit.layers["vae_normalized"], rtol=1e-4, atol=1e-4)


def test_all_questions_are_answered(fit: ad.AnnData, others: ad.AnnData) -> None:
    vx.tl.log_likelihood(fit, n_samples=5)
    assert np.isfinite(fit.obs["vae_log_likelihood"]).all()
    vx.tl.diagnose(fit, n_cells=8)
    vx.tl.sample(fit, key_added="drawn")
    new = vx.tl.generate(fit, 20)
    for drawn in (fit.layers["drawn"], new.X):
        values = drawn.toarray() if hasattr(drawn, "toarray") else np.asarray(drawn)
        assert (values >= 0).all()
        assert 0 < values.mean() < 100
    vx.tl.predictive_check(fit)
    vx.tl.outliers(others[:20].copy(), fit, calibration=others[20:].copy())
    vx.tl.rank_genes_groups(fit, "group")
    path = vx.tl.interpolate(fit, "group_0", "group_1", groupby="group", n_steps=3)
    assert np.isfinite(path.X).all()


def test_new_batches_and_missing_genes_are_encoded(fit: ad.AnnData, adata: ad.AnnData) -> None:
    query = adata[:50, 5:].copy()
    query.obs["batch"] = "new"
    vx.tl.encode(query, fit, fine_tune=2)
    assert np.isfinite(query.obsm["X_vae"]).all()


def test_all_together_are_cured_and_recorded(adata: ad.AnnData) -> None:
    settings = {"likelihood": "geometric", "prior": "laplace", "objective": "renyi"}
    options = Options(decoder="powers", blocks=("activity",), source="counting")
    vx.tl.fit_vae(adata, "batch", **QUICK, **settings, options=options, cure=True)
    assert np.isfinite(adata.obsm["X_vae"]).all()
    model = adata.uns["vae"]["params"]["model"]
    assert (model["likelihood"], model["prior"]["name"], model["decoder"]) == ("geometric", "laplace", "powers")
    vx.tl.encode(adata, key_added="again")
    np.testing.assert_allclose(adata.obsm["again"], adata.obsm["X_vae"], rtol=1e-4, atol=1e-5)


def test_a_fit_whose_class_is_not_registered_names_it(fit: ad.AnnData, kind: str, tmp_path: Path) -> None:
    if kind == "source":
        pytest.skip("a stored fit does not need its source")
    extension = EXTENSIONS[kind]
    vx.save_model(fit, tmp_path / "fit.safetensors")
    extend.unregister(kind, extension.name)
    try:
        message = rf"uses the [a-z ]*{kind} '{extension.name}', which is not registered.*vx\.extend\.register_{kind}\("
        for use in (
            lambda: vx.tl.encode(fit, key_added="again"),
            lambda: vx.tl.denoise(fit, key_added="again"),
            lambda: vx.load_model(tmp_path / "fit.safetensors"),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                use()
            assert "damaged" not in str(caught.value)
    finally:
        _register(kind)
    vx.load_model(tmp_path / "fit.safetensors")


def test_an_unknown_name_lists_the_registered_ones(adata: ad.AnnData, kind: str) -> None:
    settings: dict[str, Any] = {kind: "x"}
    if kind not in {"likelihood", "prior", "objective"}:
        settings = {"options": Options(**{"blocks": ("x",)} if kind == "block" else settings)}
    with pytest.raises(ValueError, match=rf"'x' is not known; choose one of .*'{EXTENSIONS[kind].name}'"):
        vx.tl.fit_vae(adata, **settings)


# what each does


def _cells(adata: ad.AnnData) -> extend.Batch:
    return read_query(adata, Fit.from_uns(adata.uns["vae"]), None).cells.batch(torch.arange(adata.n_obs))


def test_the_likelihood_is_the_distribution(fits: dict[str, ad.AnnData]) -> None:
    adata = fits["likelihood"]
    model, batch = _model(adata), _cells(adata)
    with torch.no_grad():
        point = model.posterior(batch).mean()
        found = model.log_likelihood(point, batch)["rna"].numpy()
        distribution = model.likelihood(point, batch.covariates, batch.log_library_n1)
        mean = distribution.mean.double().numpy()
        p = 1.0 / (1.0 + mean)
        x = batch.x_ng.numpy()
        np.testing.assert_allclose(found, stats.geom.logpmf(x, p, loc=-1).sum(1), rtol=1e-4)
        below, upto = (part.numpy() for part in distribution.steps(batch.x_ng))
        np.testing.assert_allclose(below, stats.geom.cdf(x - 1, p, loc=-1), atol=1e-6)
        np.testing.assert_allclose(upto, stats.geom.cdf(x, p, loc=-1), atol=1e-6)
        drawn = distribution.sample((50,), generator=torch.Generator().manual_seed(0)).numpy()
    assert drawn.mean() == pytest.approx(mean.mean(), rel=0.05)
    assert (drawn == 0).mean() == pytest.approx(p.mean(), rel=0.02)


def test_the_density_of_the_prior_enters_the_bound(fits: dict[str, ad.AnnData]) -> None:
    model, batch = _model(fits["prior"]), _cells(fits["prior"])
    eps = torch.randn(len(batch), 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        q = model.posterior(batch)["z"]
        terms = extend.elbo(model, batch, extend.Noise(0), eps)
    z = q.rsample(eps).double().numpy()
    loc, scale = q.loc.double().numpy(), q.scale.double().numpy()
    expected = stats.norm.logpdf(z, loc, scale).sum(1) - stats.laplace.logpdf(z, scale=0.5).sum(1)
    np.testing.assert_allclose(terms.kl["z"].sum(-1).numpy(), expected, rtol=1e-3, atol=1e-3)
    drawn = vx.tl.generate(fits["prior"], 4000, n_neighbors=None).obsm["X_vae"]
    assert np.abs(drawn).mean() == pytest.approx(0.5, rel=0.05)


def test_the_decoder_is_made_with_its_options(fits: dict[str, ad.AnnData]) -> None:
    assert fits["decoder"].uns["vae"]["weights"]["decoder.body.linear.weight"].shape == (8, 3 * 3 + 2)


def test_the_block_has_a_divergence_and_slots_and_moves_z(fits: dict[str, ad.AnnData]) -> None:
    adata = fits["block"].copy()
    model, batch = _model(adata), _cells(adata)
    q = model.posterior(batch)
    mean, sd = (part.detach().double().numpy() for part in (q["activity"].loc, q["activity"].scale))
    np.testing.assert_allclose(adata.obsm["vae_activity"], mean, rtol=1e-5)
    np.testing.assert_allclose(adata.obsm["vae_activity_var"], sd**2, rtol=1e-4)
    kl = 0.5 * (sd**2 / 2 + (mean - 0.5) ** 2 / 2 - 1 - np.log(sd**2 / 2))
    found = model.blocks["activity"].kl(q["activity"], q["activity"].loc, batch.covariates).detach().numpy()
    np.testing.assert_allclose(found, kl, rtol=1e-3, atol=1e-5)
    held_out = (adata.obs["vae_split"] == "validation").to_numpy()
    history, best = adata.uns["vae"]["history"], adata.uns["vae"]["params"]["best_epoch"]
    assert history["kl_activity_validation"][best] == pytest.approx(kl[held_out].mean(), rel=1e-3)
    parts = history["reconstruction_validation"] - history["kl_validation"] - history["kl_activity_validation"]
    np.testing.assert_allclose(history["elbo_validation"], parts, rtol=1e-5)
    # one unit of activity and a step of z along its direction are the same
    z_nd, u = q["z"].loc, q["activity"].loc
    block = cast("Activity", model.blocks["activity"])
    moved = {"z": z_nd + block.direction_d, "activity": u - 1.0}
    for point in ({"z": z_nd, "activity": u}, moved):
        values = model.likelihood(point, batch.covariates, batch.log_library_n1).mean
        torch.testing.assert_close(values, model.likelihood(moved, batch.covariates, batch.log_library_n1).mean)
    drawn = model.sample_others(
        batch.covariates[torch.zeros(9000, dtype=torch.int64)], torch.Generator().manual_seed(0)
    )
    assert drawn["activity"].mean() == pytest.approx(0.5, abs=0.05)
    assert drawn["activity"].var() == pytest.approx(2.0, rel=0.05)
    # a fit without the block removes what it wrote
    vx.tl.fit_vae(adata, "batch", **QUICK)
    assert not [name for name in adata.obsm if "activity" in name]


def test_generated_cells_vary_as_their_blocks_do(fits: dict[str, ad.AnnData]) -> None:
    class Depth(Activity):
        """A factor of all counts, from exp(-3) to exp(3)."""

        def prior(self, covariates: extend.Covariates) -> tuple[Tensor, Tensor]:
            return torch.tensor(0.0), torch.tensor(1.0)

        def enter(self, inputs: extend.DecoderInputs, value: Tensor) -> extend.DecoderInputs:
            return dataclasses.replace(inputs, log_library_n1=inputs.log_library_n1 + value)

    extend.register_block("activity", Depth, replace=True)
    try:
        # the weights of both classes have the same names and shapes
        new = vx.tl.generate(fits["block"], 2000, library=3000.0)
    finally:
        extend.register_block("activity", Activity, replace=True)
    total = np.asarray(new.X.sum(1)).ravel()
    assert np.log(total).std() == pytest.approx(1.0, rel=0.1)


def test_the_objective_lies_between_the_elbo_and_the_iwae(fits: dict[str, ad.AnnData]) -> None:
    history = fits["objective"].uns["vae"]["history"]
    model, batch = _model(fits["objective"]), _cells(fits["objective"])
    objective = Renyi(Fit.from_uns(fits["objective"].uns["vae"]).params.train, model)
    with torch.no_grad():
        terms = objective.terms(model, batch, extend.Noise(0))
        log_weight_kn, bound_n = terms.log_weight(), objective.bound(terms, 1.0)
    assert bool((log_weight_kn.mean(0) <= bound_n + 1e-3).all())
    assert bool((bound_n <= terms.value() + 1e-3).all())
    assert (history["objective_validation"] > history["elbo_validation"]).all()


def test_the_source_serves_all_reads_and_changes_no_bit(adata: ad.AnnData) -> None:
    plain, counted = adata, adata.copy()
    vx.tl.fit_vae(plain, "batch", **QUICK)
    Counting.n_read = 0
    vx.tl.fit_vae(counted, "batch", **QUICK, **EXTENSIONS["source"].settings)
    # three epochs of training cells, three looks at the held-out ones, and the encoding of all
    assert Counting.n_read >= (3 + 1) * counted.n_obs
    np.testing.assert_array_equal(counted.obsm["X_vae"], plain.obsm["X_vae"])
    assert counted.uns["vae"]["sha256"] == plain.uns["vae"]["sha256"]


def test_a_variant_of_the_elbo_has_its_floors_and_schedules(adata: ad.AnnData) -> None:
    class Variant(extend.ElboObjective):
        pass

    extend.register_objective("variant", Variant)
    try:
        plain = adata.copy()
        vx.tl.fit_vae(plain, "batch", **QUICK, free_bits=0.1, denoised=False)
        vx.tl.fit_vae(adata, "batch", **QUICK, free_bits=0.1, denoised=False, objective="variant")  # type: ignore[arg-type]
    finally:
        extend.unregister("objective", "variant")
    np.testing.assert_array_equal(adata.obsm["X_vae"], plain.obsm["X_vae"])
    with pytest.raises(ValueError, match=r"free_bits=0\.1 .* objective='renyi'"):
        vx.tl.fit_vae(adata, objective="renyi", free_bits=0.1)  # type: ignore[arg-type]


# registration


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
        weight_gd = _model(adata).decoder.location.weight.detach().numpy()[: adata.n_vars, : QUICK["n_latent"]]
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
