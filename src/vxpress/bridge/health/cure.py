"""Refit a fit that fails its checks, with one change of the settings at a time, and keep the changes that help.

The changes (rungs) are tried in the order of :func:`ladder`. A rung is skipped if it does not treat the current verdict or
would change nothing. Changes that are kept remain for the following rungs. A change is kept if the importance-weighted
bound of held-out cells, which does not contain beta and free bits, does not fall. It is computed on the same cells with the
same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scanpy import logging as logg

from vxpress.bridge.fits.runner import Fitted, Runner
from vxpress.bridge.health.verdict import MIN_STEPS, is_sound, kind_of
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.inference.importance import log_likelihood
from vxpress.core.isolation import after_interrupt
from vxpress.core.objectives import OBJECTIVES
from vxpress.core.progress import stage
from vxpress.core.settings import Settings
from vxpress.core.training import TrainingError

# largest number of held-out cells that a cure is judged on, and samples per cell
MAX_JUDGED, N_SAMPLES, JUDGE_SEED = 500, 50, 0
DEFAULTS = Settings()
LONG_WARMUP, FREE_BITS, ENCODER_STEPS = 0.6, 0.1, 5
DROPOUT, SMALL_NETWORK, FEW_DIMENSIONS = 0.5, 64, 10

Change = tuple[ModelConfig, TrainConfig]


@dataclass(frozen=True)
class Rung:
    """One change of the settings, and the verdicts that it treats; ``apply`` returns None if it would change nothing."""

    name: str
    treats: tuple[str, ...]
    apply: Callable[[ModelConfig, TrainConfig], Change | None]


def _beta(model: ModelConfig, train: TrainConfig) -> Change | None:
    if train.beta == 1.0:
        return None
    if train.kl_schedule == "capacity":  # which needs a weight above 1
        return model, replace(train, beta=1.0, kl_schedule="linear", kl_capacity=0.0)
    return model, replace(train, beta=1.0)


def _beta_down(model: ModelConfig, train: TrainConfig) -> Change | None:
    return _beta(model, train) if train.beta > 1.0 else None


def _beta_up(model: ModelConfig, train: TrainConfig) -> Change | None:
    return _beta(model, train) if train.beta < 1.0 else None


def _beta_and_network(model: ModelConfig, train: TrainConfig) -> Change | None:
    # a strong divergence also prevents overfitting; without it, overfitting may cost more than collapse does
    changed = _beta_down(model, train)
    return None if changed is None else _narrower(SMALL_NETWORK)(*changed)


def _warmup(model: ModelConfig, train: TrainConfig) -> Change | None:
    if train.warmup_unit == "steps" and train.kl_warmup >= DEFAULTS.kl_warmup:
        return None
    return model, replace(train, warmup_unit="steps", kl_warmup=DEFAULTS.kl_warmup)


def _more_epochs(model: ModelConfig, train: TrainConfig, n_train: int) -> Change:
    per_epoch = max(1, -(-n_train // train.batch_size))
    enough = max(DEFAULTS.max_epochs(n_train, 0), -(-2 * MIN_STEPS // per_epoch), 2 * train.max_epochs)
    return model, replace(train, max_epochs=enough)


def _small_network(model: ModelConfig, train: TrainConfig) -> Change | None:
    if model.n_hidden <= DEFAULTS.n_hidden and model.n_layers == 1:
        return None
    return replace(model, n_hidden=min(model.n_hidden, DEFAULTS.n_hidden), n_layers=1), train


def _early_stopping(model: ModelConfig, train: TrainConfig) -> Change | None:
    if train.early_stopping and train.keep_best:
        return None
    return model, replace(train, early_stopping=True, keep_best=True)


def _dropout(model: ModelConfig, train: TrainConfig) -> Change | None:
    return None if model.dropout >= DROPOUT else (replace(model, dropout=DROPOUT), train)


def _longer_warmup(model: ModelConfig, train: TrainConfig) -> Change | None:
    if train.warmup_unit == "steps" and train.kl_warmup >= LONG_WARMUP:
        return None
    return model, replace(train, warmup_unit="steps", kl_warmup=LONG_WARMUP)


def _free_bits(model: ModelConfig, train: TrainConfig) -> Change | None:
    if not OBJECTIVES[train.objective].has_divergence or train.kl_schedule == "capacity" or train.beta == 0.0:
        return None  # free bits have no meaning with these settings
    return None if train.free_bits >= FREE_BITS else (model, replace(train, free_bits=FREE_BITS))


def _skip_decoder(model: ModelConfig, train: TrainConfig) -> Change | None:
    return None if model.decoder != "mlp" else (replace(model, decoder="skip"), train)


def _encoder_ahead(model: ModelConfig, train: TrainConfig) -> Change | None:
    if train.encoder_steps >= ENCODER_STEPS:
        return None
    return model, replace(train, encoder_steps=ENCODER_STEPS)


def _fewer_dimensions(model: ModelConfig, train: TrainConfig) -> Change | None:
    return None if model.n_latent <= FEW_DIMENSIONS else (replace(model, n_latent=FEW_DIMENSIONS), train)


def _narrower(width: int) -> Callable[[ModelConfig, TrainConfig], Change | None]:
    def apply(model: ModelConfig, train: TrainConfig) -> Change | None:
        return (replace(model, n_hidden=width), train) if model.n_hidden > width else None

    return apply


def _learned_prior(model: ModelConfig, train: TrainConfig) -> Change | None:
    if model.prior.name != "normal":
        return None
    return replace(model, prior=replace(model.prior, name="vamp")), train


def ladder(n_train: int) -> tuple[Rung, ...]:
    """Return the rungs in order: first changes that remove a cause, then changes that help with any cause."""
    return (
        Rung("more epochs", ("under-trained",), lambda model, train: _more_epochs(model, train, n_train)),
        Rung("warm-up within the budget", ("under-trained",), _warmup),
        Rung("beta=1", ("under-trained", "collapsed"), _beta_down),
        Rung("beta=1, smaller network", ("collapsed",), _beta_and_network),
        Rung("beta=1", ("prior gap",), _beta),
        Rung("beta=1", ("overfitted",), _beta_up),
        Rung("default warm-up", ("collapsed",), _warmup),
        Rung("keep the best epoch", ("overfitted",), _early_stopping),
        Rung("default network", ("overfitted",), _small_network),
        Rung("longer warm-up", ("collapsed",), _longer_warmup),
        Rung("free bits", ("collapsed",), _free_bits),
        Rung("skip decoder", ("collapsed",), _skip_decoder),
        Rung("encoder-ahead steps", ("collapsed",), _encoder_ahead),
        Rung("fewer dimensions", ("collapsed",), _fewer_dimensions),
        Rung("smaller network", ("collapsed", "overfitted"), _narrower(SMALL_NETWORK)),
        Rung("smaller network", ("overfitted",), _narrower(32)),
        Rung("more dropout", ("overfitted",), _dropout),
        Rung("learned prior", ("prior gap",), _learned_prior),
    )


@dataclass(frozen=True)
class Judged:
    """A fit with its diagnosis and the bound of each held-out cell."""

    fitted: Fitted
    diagnosis: dict[str, Any]
    iwae_n: np.ndarray


def cure(
    runner: Runner, first: Fitted, diagnosis: dict[str, Any], diagnose: Callable[[Fitted], dict[str, Any]]
) -> tuple[Fitted, dict[str, Any]]:
    """Return the best fit that the ladder reaches and its diagnosis, with a record of the attempts if there were any.

    ``diagnose`` computes the diagnosis of a fit. Attempts that cannot be trained are skipped. An interrupt ends the search. A
    fit that was interrupted is returned unchanged.
    """
    if is_sound(str(diagnosis["verdict"])) or first.outcome.interrupted:
        return first, diagnosis
    search = _Search(runner, diagnose)
    try:
        search.begin(first, diagnosis)
        search.walk()
    except KeyboardInterrupt:
        after_interrupt()
        logg.warning(f"    {search.trying}: interrupted; not kept")
        if search.best is None:
            first.outcome.interrupt()
            return first, diagnosis
        search.best.fitted.outcome.interrupt()
    best = search.best
    assert best is not None  # noqa: S101 - the search has begun
    return best.fitted, best.diagnosis | {"cure": _columns(search.record), "before_cure": _before(diagnosis)}


class _Search:
    """The state of the search, which remains after an interrupt: the best fit so far, the attempts, and the current attempt."""

    def __init__(self, runner: Runner, diagnose: Callable[[Fitted], dict[str, Any]]) -> None:
        self.runner, self.diagnose = runner, diagnose
        self.best: Judged | None = None
        self.record: list[dict[str, Any]] = []
        self.trying = "as asked"

    def begin(self, first: Fitted, diagnosis: dict[str, Any]) -> None:
        """Judge the fit with the requested settings."""
        logg.warning(f"{diagnosis['verdict']} Refitting with adjusted settings.")
        validation_n = self.runner.prepared.validation_n
        rows = np.sort(np.random.default_rng(JUDGE_SEED).permutation(validation_n)[:MAX_JUDGED])
        self.held_out = self.runner.cells.take(torch.from_numpy(rows).to(self.runner.device))
        judged = Judged(first, diagnosis, self._bound(first))
        self.record.append(_row("as asked", "", judged, judged, kept=True))
        self.best = judged

    def walk(self) -> None:
        """Try the rungs in order until the fit is sound."""
        for rung in ladder(len(self.runner.prepared.train_n)):
            assert self.best is not None  # noqa: S101 - the search has begun
            verdict = str(self.best.diagnosis["verdict"])
            if is_sound(verdict):
                return
            settings = self.best.fitted.model.config, self.best.fitted.train
            changed = rung.apply(*settings) if kind_of(verdict) in rung.treats else None
            if changed is not None:
                self._try(rung.name, describe(settings, changed), changed, self.best)

    def _try(self, name: str, change: str, changed: Change, best: Judged) -> None:
        self.trying = f"{name} ({change})"
        try:
            with stage(f"cure, {name}"):
                fitted = self.runner.fit(*changed)
                if fitted.outcome.interrupted:
                    raise KeyboardInterrupt
                tried = Judged(fitted, self.diagnose(fitted), self._bound(fitted))
        except TrainingError as error:
            logg.warning(f"    {self.trying}: {error}; not kept")
            return
        kept = helps(best, tried)
        row = _row(name, change, tried, best, kept=kept)
        logg.warning(
            f"    {self.trying}: {kind_of(str(tried.diagnosis['verdict']))}, held-out IWAE "
            f"{row['iwae_change']:+.2f} nats per cell; {'kept' if kept else 'not kept'}"
        )
        self.best, self.record = (tried if kept else best), [*self.record, row]

    def _bound(self, fitted: Fitted) -> np.ndarray:
        return self.runner.world.once(
            lambda: log_likelihood(fitted.model, self.held_out, N_SAMPLES, seed=JUDGE_SEED).log_likelihood_n
        )


def _columns(record: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Turn rows into columns, which can be written to a file; ``pandas.DataFrame`` makes a table of them."""
    columns = {name: [row[name] for row in record] for name in record[0]}
    return {
        name: np.array(values, dtype=object if isinstance(values[0], str) else None) for name, values in columns.items()
    }


def _before(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the diagnosis that is kept of the fit with the requested settings."""
    return {name: diagnosis[name] for name in ("verdict", "kl_per_dim", "active", "active_units", "mutual_information")}


def helps(before: Judged, after: Judged) -> bool:
    """Return whether the held-out IWAE does not fall and no fit collapses that had not collapsed before.

    A sound fit need not gain: its bound may be lower within the 95 % interval over cells.
    """
    worse = kind_of(str(after.diagnosis["verdict"])) in ("collapsed", "under-trained")
    was = kind_of(str(before.diagnosis["verdict"])) in ("collapsed", "under-trained")
    change_n = after.iwae_n - before.iwae_n
    slack = 1.96 * _se(change_n) if is_sound(str(after.diagnosis["verdict"])) else 0.0
    return bool(change_n.mean() + slack >= 0.0) and (was or not worse)


def _se(change_n: np.ndarray) -> float:
    """Compute the standard error of the mean over cells; 0 for a single cell."""
    return float(change_n.std(ddof=1) / np.sqrt(len(change_n))) if len(change_n) > 1 else 0.0


def describe(before: Change, after: Change) -> str:
    """List the settings that differ, as ``name=value``."""
    parts = []
    for old, new in zip(before, after, strict=True):
        for name, value in vars(new).items():
            if value != getattr(old, name):
                parts.append(f"{name}={value.name if name == 'prior' else value}")
    return ", ".join(parts)


def _row(name: str, change: str, tried: Judged, against: Judged, *, kept: bool) -> dict[str, Any]:
    """Return the record of an attempt; numbers are in nats per held-out cell."""
    change_n = tried.iwae_n - against.iwae_n
    return {
        "attempt": name,
        "change": change,
        "verdict": str(tried.diagnosis["verdict"]),
        "iwae": float(tried.iwae_n.mean()),
        "iwae_change": float(change_n.mean()),
        "iwae_change_se": _se(change_n),
        "kl": float(tried.diagnosis["kl"]),
        "active_units": int(tried.diagnosis["active_units"]),
        "mutual_information": float(tried.diagnosis["mutual_information"]),
        "kept": kept,
    }
