"""The steps of a cure: their order, which changes are kept, and what is written."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import vxpress as vx
from vxpress.bridge.health import cure as cures
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.parallel import SINGLE
from vxpress.core.priors import PRIORS, Prior
from vxpress.core.training import Outcome

HEALTHY = "healthy: all well"
SMALL = {"n_latent": 3, "n_hidden": 16, "batch_size": 64, "denoised": False, "max_epochs": 40}


class FakeRunner:
    """A runner without training: a fit is its settings, and its diagnostics are a function of them."""

    def __init__(self, n_validation: int = 30) -> None:
        self.prepared = SimpleNamespace(validation_n=np.arange(n_validation), train_n=np.arange(270))
        self.cells = SimpleNamespace(take=lambda rows: rows)
        self.device, self.world = "cpu", SINGLE
        self.fitted: list[Any] = []

    def fit(self, model: ModelConfig, train: TrainConfig) -> Any:
        self.fitted.append((model, train))
        return _fitted(model, train)


def _fitted(model: ModelConfig, train: TrainConfig) -> Any:
    outcome = Outcome()
    return SimpleNamespace(model=SimpleNamespace(config=model), train=train, outcome=outcome)


def _found(verdict: str) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "kl": 1.0,
        "kl_per_dim": np.ones(2),
        "active": np.ones(2, dtype=bool),
        "active_units": 2,
        "mutual_information": 1.0,
    }


def _walk(monkeypatch: pytest.MonkeyPatch, verdict: Any, iwae: Any, **settings: Any) -> tuple[Any, dict, FakeRunner]:
    """Run the cure from these settings; ``verdict`` and ``iwae`` are functions of a fit."""
    names = TrainConfig.__dataclass_fields__
    model = ModelConfig(n_genes=50, **{k: v for k, v in settings.items() if k not in names})
    train = TrainConfig(max_epochs=50, **{k: v for k, v in settings.items() if k in names})

    def bound(model: Any, cells: np.ndarray, n_samples: int, seed: int) -> Any:
        return SimpleNamespace(log_likelihood_n=np.full(len(cells), iwae(model.config)))

    monkeypatch.setattr(cures, "log_likelihood", bound)
    runner, first = FakeRunner(), _fitted(model, train)
    fitted, found = cures.cure(runner, first, _found(verdict(first)), lambda fitted: _found(verdict(fitted)))
    return fitted, found, runner


def test_an_incurable_collapse_tries_every_step_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"n_latent": 32, "n_hidden": 256, "decoder": "mlp"}

    def iwae(model: ModelConfig) -> float:
        return -10.0 if all(getattr(model, name) == value for name, value in asked.items()) else -11.0

    fitted, found, runner = _walk(
        monkeypatch,
        lambda _: "collapsed: always",
        iwae,
        beta=20.0,
        kl_warmup=0.0,
        n_latent=32,
        n_hidden=256,
    )
    assert list(found["cure"]["attempt"]) == [
        "as asked",
        "beta=1",
        "default warm-up",
        "longer warm-up",
        "free bits",
        "skip decoder",
        "encoder-ahead steps",
        "fewer dimensions",
        "smaller network",
    ]
    assert len(runner.fitted) == 8
    # changes that do not lower the bound are kept: causes and objective; the network is as requested
    assert list(found["cure"]["kept"]) == [True] * 5 + [False, True, False, False]
    assert (fitted.model.config.n_latent, fitted.model.config.n_hidden) == (32, 256)
    assert (fitted.train.beta, fitted.train.kl_warmup, fitted.train.free_bits) == (1.0, 0.6, 0.1)


def test_a_change_is_kept_only_if_the_bound_does_not_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    # the skip decoder helps, all other changes have no effect or do harm
    fitted, found, _ = _walk(
        monkeypatch,
        lambda fitted: HEALTHY if fitted.model.config.decoder == "skip" else "collapsed: still",
        lambda model: -10.0 if model.decoder == "skip" else -11.0,
    )
    record = pd.DataFrame(found["cure"])
    assert list(record["attempt"]) == ["as asked", "longer warm-up", "free bits", "skip decoder"]
    assert fitted.model.config.decoder == "skip"
    np.testing.assert_allclose(record["iwae_change"], [0.0, 0.0, 0.0, 1.0])
    assert record["kept"].all()


def test_what_lowers_the_bound_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, found, runner = _walk(
        monkeypatch,
        lambda fitted: HEALTHY if fitted.model.config.n_hidden <= 32 else "overfitted: still",
        lambda model: {512: -12.0, 128: -10.0, 64: -10.5, 32: -9.0}[model.n_hidden],
        n_hidden=512,
    )
    record = pd.DataFrame(found["cure"])
    assert list(record["change"]) == ["", "n_hidden=128", "n_hidden=64", "n_hidden=32"]
    assert list(record["kept"]) == [True, True, False, True]
    assert fitted.model.config.n_hidden == 32
    assert len(runner.fitted) == 3


def test_beta_and_the_network_size_may_decrease_together(monkeypatch: pytest.MonkeyPatch) -> None:
    # as requested, at beta 1, at beta 1 with the smaller network
    bounds = iter([-10.0, -10.5, -9.0])
    fitted, found, _ = _walk(
        monkeypatch,
        lambda fitted: HEALTHY if fitted.train.beta == 1.0 else "collapsed: still",
        lambda _: next(bounds),
        beta=20.0,
        n_hidden=128,
    )
    assert list(found["cure"]["attempt"]) == ["as asked", "beta=1", "beta=1, smaller network"]
    assert list(found["cure"]["kept"]) == [True, False, True]
    assert (fitted.train.beta, fitted.model.config.n_hidden) == (1.0, 64)


def test_steps_that_other_settings_forbid_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    # free bits are a floor for the divergence in the ELBO, which a bound of several samples does not contain
    _, found, _ = _walk(monkeypatch, lambda _: "collapsed: always", lambda _: -1.0, objective="iwae")
    assert "free bits" not in list(found["cure"]["attempt"])
    assert "skip decoder" in list(found["cure"]["attempt"])


def test_a_better_bound_does_not_excuse_a_collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, found, _ = _walk(
        monkeypatch,
        lambda fitted: "collapsed: now" if fitted.model.config.n_hidden < 100 else "overfitted: still",
        lambda model: -float(model.n_hidden),
        n_hidden=100,
    )
    assert fitted.model.config.n_hidden == 100
    assert list(found["cure"]["kept"])[1:3] == [False, False]


def test_a_healthy_fit_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found, runner = _walk(monkeypatch, lambda _: HEALTHY, lambda _: -1.0)
    assert runner.fitted == []
    assert "cure" not in found


@pytest.mark.parametrize(
    ("verdict", "settings", "first"),
    [
        ("under-trained: short", {}, "more epochs"),
        ("prior gap: wide", {"beta": 0.1}, "beta=1"),
        ("prior gap: wide", {}, "learned prior"),
        ("overfitted: much", {"beta": 0.1}, "beta=1"),
        ("overfitted: much", {"keep_best": False}, "keep the best epoch"),
        ("collapsed: yes", {"kl_warmup": 0.0}, "default warm-up"),
    ],
)
def test_the_first_step_follows_the_verdict(
    monkeypatch: pytest.MonkeyPatch, verdict: str, settings: dict[str, Any], first: str
) -> None:
    monkeypatch.setitem(PRIORS._entries, "vamp", Prior)
    calls: list[Any] = []

    def once(fitted: Any) -> str:
        calls.append(fitted)
        return verdict if len(calls) == 1 else HEALTHY

    _, found, runner = _walk(monkeypatch, once, lambda _: -1.0, **settings)
    assert list(found["cure"]["attempt"]) == ["as asked", first]
    assert len(runner.fitted) == 1


@pytest.fixture(scope="module")
def simulated() -> ad.AnnData:
    return vx.datasets.simulate(400, 80, n_groups=4, library_mean=1500, de_log_fold_change=2.0, rng=1)


# settings that give a sound fit of so few cells and genes
SOUND = SMALL | {
    "n_latent": 2,
    "max_epochs": 60,
    "options": vx.tl.FitOptions(norm="batch", dropout=0.1, thinning=0.0, start="mean"),
}


@pytest.fixture(scope="module")
def sound(simulated: ad.AnnData) -> ad.AnnData:
    adata = simulated.copy()
    vx.tl.fit_vae(adata, **SOUND)
    assert adata.uns["vae"]["diagnostics"]["verdict"].startswith("healthy")
    return adata


def _same_bits(one: ad.AnnData, two: ad.AnnData) -> None:
    assert (one.obsm["X_vae"] == two.obsm["X_vae"]).all()
    weights = [adata.uns["vae"]["weights"] for adata in (one, two)]
    assert set(weights[0]) == set(weights[1])
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_cured_fit_equals_a_sound_fit(simulated: ad.AnnData, sound: ad.AnnData, tmp_path) -> None:
    cured = simulated.copy()
    vx.tl.fit_vae(cured, beta=100.0, cure=True, **SOUND)
    found = cured.uns["vae"]["diagnostics"]
    record = pd.DataFrame(found["cure"])
    assert list(record["attempt"]) == ["as asked", "beta=1"]
    assert record["verdict"][0].startswith("collapsed")
    assert record["kept"].all()
    assert found["verdict"] == sound.uns["vae"]["diagnostics"]["verdict"]
    assert float(found["before_cure"]["mutual_information"]) < 0.5 < found["mutual_information"]
    assert cured.uns["vae"]["params"]["train"]["beta"] == 1.0
    # only beta was changed
    _same_bits(sound, cured)
    cured.write_h5ad(tmp_path / "cured.h5ad")
    read = ad.read_h5ad(tmp_path / "cured.h5ad")
    pd.testing.assert_frame_equal(
        pd.DataFrame(read.uns["vae"]["diagnostics"]["cure"]), record, check_dtype=False, check_like=True
    )
    vx.tl.diagnose(read, n_cells=5)
    assert list(read.uns["vae"]["diagnostics"]["cure"]["attempt"]) == list(record["attempt"])
    ax: Any = vx.pl.kl(read, show=False)
    assert any("before the cure (0 of 2 active)" in text.get_text() for text in ax.get_legend().get_texts())


def test_a_collapse_from_too_few_units_tries_the_steps_in_order(simulated: ad.AnnData) -> None:
    """With too few units for the structure of the data, only later steps can help."""
    adata = simulated.copy()
    hides_much = vx.tl.FitOptions(dropout=0.3, thinning=0.9)
    vx.tl.fit_vae(adata, cure=True, options=hides_much, **(SMALL | {"n_latent": 2, "n_hidden": 8}))
    record = pd.DataFrame(adata.uns["vae"]["diagnostics"]["cure"])
    assert record["verdict"][0].startswith("collapsed")
    names = [rung.name for rung in cures.ladder(360) if "collapsed" in rung.treats]
    places = [names.index(attempt) for attempt in record["attempt"][1:]]
    assert places == sorted(places)
    assert names.index("longer warm-up") == places[0]
    assert len(record) > 2
    tried = record[1:]
    assert (tried["iwae_change"][tried["kept"]] >= 0).all()
    assert (tried["iwae_change"][~tried["kept"]] < 0).all()
    # the kept fit is written
    kept = record[record["kept"]]
    np.testing.assert_allclose(
        kept["mutual_information"].iloc[-1], adata.uns["vae"]["diagnostics"]["mutual_information"]
    )
    assert kept["iwae"].iloc[-1] >= record["iwae"][0]


def test_cure_changes_no_bit_of_a_sound_fit(simulated: ad.AnnData, sound: ad.AnnData) -> None:
    adata = simulated.copy()
    vx.tl.fit_vae(adata, cure=True, **SOUND)
    assert "cure" not in adata.uns["vae"]["diagnostics"]
    _same_bits(sound, adata)


def test_cure_needs_held_out_cells_and_a_bool(adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"validation_fraction=0\.1"):
        vx.tl.fit_vae(adata, cure=True, validation_fraction=0.0)
    with pytest.raises(ValueError, match="True or False"):
        vx.tl.fit_vae(adata, cure="yes")
    assert "vae" not in adata.uns


@pytest.mark.parametrize("settings", [{"objective": "iwae"}, {"beta": 0.0}, {"kl_capacity": 5.0, "beta": 10.0}])
def test_free_bits_are_skipped_if_they_have_no_meaning(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    schedule = {"kl_schedule": "capacity"} if "kl_capacity" in settings else {}

    # beta=1, which would give them a meaning, is not kept
    def iwae(model: ModelConfig) -> float:
        return -float(len(walked))

    walked: list[Any] = []

    def verdict(fitted: Any) -> str:
        walked.append(fitted)
        return "collapsed: always"

    _, found, _ = _walk(monkeypatch, verdict, iwae, **settings, **schedule)
    assert "longer warm-up" in found["cure"]["attempt"]
    assert "skip decoder" in found["cure"]["attempt"]
    assert "free bits" not in found["cure"]["attempt"]


def test_a_smaller_beta_keeps_a_cyclical_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, found, _ = _walk(
        monkeypatch,
        lambda fitted: HEALTHY if fitted.train.beta == 1.0 else "collapsed: still",
        lambda _: -1.0,
        beta=20.0,
        kl_schedule="cyclical",
    )
    assert list(found["cure"]["change"]) == ["", "beta=1.0"]
    assert fitted.train.kl_schedule == "cyclical"


def test_an_interrupted_fit_is_not_cured(simulated: ad.AnnData, interrupt_look: Callable[[int], list[Any]]) -> None:
    calls = interrupt_look(8)
    adata = simulated.copy()
    vx.tl.fit_vae(adata, beta=100.0, cure=True, **SMALL)
    assert adata.uns["vae"]["params"]["stopped"] == "interrupted"
    assert "cure" not in adata.uns["vae"]["diagnostics"]
    assert len(calls) == 8


@pytest.mark.parametrize("while_", ["training", "diagnosing", "judging"])
def test_an_interrupt_ends_the_search_and_keeps_the_best_so_far(monkeypatch: pytest.MonkeyPatch, while_: str) -> None:
    # beta=1 helps; the interrupt comes at the next step
    def at(now: str, config: ModelConfig) -> None:
        if now == while_ and config.decoder == "skip":
            raise KeyboardInterrupt

    def verdict(fitted: Any) -> str:
        at("diagnosing", fitted.model.config)
        return "collapsed: always"

    def iwae(model: ModelConfig) -> float:
        at("judging", model)
        return -10.0

    fit = FakeRunner.fit

    def trained(self: FakeRunner, model: ModelConfig, train: TrainConfig) -> Any:
        fitted = fit(self, model, train)
        at("training", model)
        return fitted

    monkeypatch.setattr(FakeRunner, "fit", trained)
    fitted, found, runner = _walk(monkeypatch, verdict, iwae, beta=20.0)
    assert list(found["cure"]["attempt"]) == ["as asked", "beta=1", "longer warm-up", "free bits"]
    assert runner.fitted[-1][0].decoder == "skip"
    assert fitted.outcome.interrupted
    assert (fitted.model.config.decoder, fitted.train.beta, fitted.train.free_bits) == ("mlp", 1.0, 0.1)
