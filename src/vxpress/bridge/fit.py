"""A fit as data: everything that ``uns`` holds of it, and the way back to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vxpress.bridge.codec import from_uns, to_uns
from vxpress.bridge.covariates import CovariateTable
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.vae import VAE, build

FORMAT = "vxpress-fit-1"
PARTS = ("params", "history", "diagnostics", "covariates", "genes", "weights")


@dataclass(frozen=True)
class Params:
    """Every setting of a fit, enough to run it again; the record under ``uns[key]["params"]``.

    A mask that was given as an array stands under ``genes``; a generator given as ``rng`` is not recorded.
    """

    model: ModelConfig
    train: TrainConfig
    version: str
    library: str
    library_source: str
    scale: str
    library_factor: float = 1.0
    layer: str | None = None
    mask_var: str | None = None
    batch_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    labels_key: str | None = None
    validation_fraction: float = 0.1
    target_sum: float = 1e4
    preset: str | None = None
    rng: int | None = None
    split_rng: int | None = None
    device: str = "cpu"
    stopped: str = "budget"
    best_epoch: int = 0
    n_steps: int = 0
    n_voided: int = 0
    dispersion_gain: float = 0.0
    n_train: int = 0


@dataclass(frozen=True)
class Fit:
    """A trained model with all that is needed to use it again."""

    params: Params
    covariates: CovariateTable
    genes: np.ndarray
    modelled_g: np.ndarray
    model: VAE
    history: dict[str, np.ndarray]
    diagnostics: dict[str, Any]
    prior: dict[str, Any] = field(default_factory=dict)
    """How the prior was learned, where it was; see :func:`vxpress.tl.fit_prior`."""
    choice: dict[str, Any] = field(default_factory=dict)
    """How a setting that was left to the data was chosen, where one was."""

    @property
    def condition_key(self) -> str | None:
        """The column of ``obs`` that the prior is given, if any."""
        return str(self.prior["condition_key"]) if "condition_key" in self.prior else None

    @property
    def conditions(self) -> tuple[str, ...]:
        """The values of that column that the prior knows: condition c is number c.

        Cells without a value have one more condition, behind these, which has no name.
        """
        return tuple(map(str, self.prior["categories"])) if "condition_key" in self.prior else ()

    def to_uns(self) -> dict[str, Any]:
        """As nested mappings of scalars, strings and arrays."""
        out = {
            "format": FORMAT,
            "params": to_uns(self.params),
            "history": dict(self.history),
            "diagnostics": dict(self.diagnostics),
            "covariates": self.covariates.to_uns(),
            "genes": {"names": np.array(self.genes, dtype=object), "modelled": self.modelled_g},
            "weights": {name: value.detach().cpu().numpy().copy() for name, value in self.model.state_dict().items()},
        }
        records = {"prior": self.prior, "choice": self.choice}
        return out | {name: dict(record) for name, record in records.items() if record}

    def loadings(self) -> np.ndarray | None:
        """Slopes of the decoded logits in z, float32 (genes, d) with NaN for genes outside the model; None unless linear."""
        config = self.params.model
        if config.decoder != "linear":
            return None
        loadings_gd = np.full((len(self.genes), config.n_latent), np.nan, dtype=np.float32)
        weight = self.model.decoder.location.weight.detach().cpu().numpy()
        # beside z stands the condition, below the genes the remainder
        loadings_gd[self.modelled_g] = weight[: config.n_genes, : config.n_latent]
        return loadings_gd

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> Fit:
        """The fit that :meth:`to_uns` stored; raises ``ValueError`` where it is damaged."""
        missing = [part for part in PARTS if not isinstance(stored.get(part), Mapping)]
        if missing:
            msg = f"The stored fit lacks {missing}: it is damaged, or parts of uns were removed. Fit again: vx.tl.fit_vae(adata)."
            raise ValueError(msg)
        try:
            params = from_uns(Params, stored["params"])
            covariates = CovariateTable.from_uns(stored["covariates"])
            genes = np.array([str(name) for name in stored["genes"]["names"]], dtype=object)
            modelled_g = np.asarray(stored["genes"]["modelled"], dtype=bool)
        except (KeyError, TypeError) as error:
            # ad.concat keeps the entries of uns that agree, and encode adds categories
            msg = (
                f"The stored fit is damaged: {error}. Was it merged by ad.concat(uns_merge='same') from a reference and a query "
                "with new categories? Then pass the AnnData that knows them all: model=query."
            )
            raise ValueError(msg) from error
        prior = dict(stored.get("prior", {}))
        _check_sizes(params, covariates, genes, modelled_g)
        _check_conditions(params, prior)
        return cls(
            params,
            covariates,
            genes,
            modelled_g,
            load_weights(params.model, stored["weights"]),
            {str(k): np.asarray(v) for k, v in stored["history"].items()},
            dict(stored["diagnostics"]),
            prior,
            dict(stored.get("choice", {})),
        )


def _check_sizes(params: Params, covariates: CovariateTable, genes: np.ndarray, modelled_g: np.ndarray) -> None:
    config = params.model
    found = (
        len(genes),
        int(modelled_g.sum()),
        tuple(len(names) for _, names in covariates.categorical),
        len(covariates.continuous),
        0 if covariates.labels is None else len(covariates.labels[1]),
    )
    expected = (len(modelled_g), config.n_genes, config.n_categories, config.n_continuous, config.n_labels)
    if found != expected:
        msg = f"The stored fit is damaged: genes and covariates number {found} where its settings say {expected}."
        raise ValueError(msg)


def _check_conditions(params: Params, prior: Mapping[str, Any]) -> None:
    expected = params.model.prior.n_conditions
    found = len(prior.get("categories", ())) + bool(prior.get("unlabelled", False))
    if found != expected:
        msg = f"The stored fit is damaged: its prior has {expected} condition(s), of which {found} are on record."
        raise ValueError(msg)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of such a model, found out without allocating any."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in VAE(config).state_dict().items()}


def load_weights(config: ModelConfig, weights: Mapping[str, Any]) -> VAE:
    """A model with these weights, in evaluation mode; shapes are checked before anything is allocated."""
    expected = expected_shapes(config)
    found = {str(name): tuple(np.shape(value)) for name, value in weights.items()}
    if found != expected:
        wrong = sorted(name for name in set(found) | set(expected) if found.get(name) != expected.get(name))[:5]
        msg = f"The stored weights do not fit the stored settings (first: {wrong}): the fit is damaged."
        raise ValueError(msg)
    state = {}
    for name, value in weights.items():
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            msg = f"The stored weight {name!r} holds values that are not finite numbers: the fit is damaged."
            raise ValueError(msg)
        state[str(name)] = torch.from_numpy(np.array(array))
    model = build(config, seed=0)
    model.load_state_dict(state)
    return model.eval()
