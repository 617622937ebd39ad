"""Convert a fit to the mappings that ``uns`` holds, and back to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vxpress.bridge.fits.annotator import LabelModel
from vxpress.bridge.fits.codec import from_uns, to_uns
from vxpress.bridge.fits.consistency import check_conditions, check_features, check_genes, check_history, check_sizes
from vxpress.bridge.fits.members import load_members, stored_members
from vxpress.bridge.fits.own_classes import changed_class, missing_class
from vxpress.bridge.fits.params import Params
from vxpress.bridge.fits.seal import ADVICE, NAME, check_seal, intact, sealed
from vxpress.bridge.fits.upgrade import FIRST, FORMAT, upgraded
from vxpress.bridge.fits.weights import load_weights, stored_weights
from vxpress.bridge.read.covariates import CovariateTable
from vxpress.core.model import VAE
from vxpress.core.registry import NotRegisteredError

# parts of every fit, and of some; a file may lose an empty mapping
PARTS = ("params", "history", "genes", "weights")
FURTHER = ("format", NAME, "covariates", "diagnostics", "prior", "choice", "ensemble", "labels", "features", "measured")


@dataclass(frozen=True)
class Fit:
    """A trained model with everything needed to use it again."""

    params: Params
    covariates: CovariateTable
    genes: np.ndarray
    modelled_g: np.ndarray
    model: VAE
    history: dict[str, np.ndarray]
    diagnostics: dict[str, Any]
    prior: dict[str, Any] = field(default_factory=dict)
    """How the prior was learned, if it was; see :func:`vxpress.tl.fit_prior`."""
    choice: dict[str, Any] = field(default_factory=dict)
    """How a setting such as ``likelihood="auto"`` was chosen from the data, if one was."""
    members: tuple[VAE, ...] = ()
    """Further models of the same cells from other seeds, which only encode; see :mod:`vxpress.bridge.fits.ensemble`."""

    features: dict[str, np.ndarray] = field(default_factory=dict)
    """The features of the modalities other than RNA, by their names in the model."""
    measured: dict[str, np.ndarray] = field(default_factory=dict)
    """Training cells of each batch that have a modality other than RNA, by its name."""

    labels: LabelModel | None = None
    """The classifier of the labels that the fit was given, if any; see :func:`vxpress.tl.annotate`."""

    @property
    def condition_key(self) -> str | None:
        """The column of ``obs`` that the prior is conditioned on, if any."""
        return str(self.prior["condition_key"]) if "condition_key" in self.prior else None

    @property
    def conditions(self) -> tuple[str, ...]:
        """The values of that column that the prior knows, in the order of their codes.

        Cells without a value have one more condition, the last, which has no name.
        """
        return tuple(map(str, self.prior["categories"])) if "condition_key" in self.prior else ()

    def to_uns(self) -> dict[str, Any]:
        """Return nested mappings of scalars, strings and arrays, with a checksum; everything written of a fit is made here."""
        out = {
            "format": FORMAT,
            "params": to_uns(self.params),
            "history": dict(self.history),
            "diagnostics": dict(self.diagnostics),
            "covariates": self.covariates.to_uns(),
            "genes": {"names": np.array(self.genes, dtype=object), "modelled": self.modelled_g},
            "weights": stored_weights(self.model),
        }
        labels = {} if self.labels is None else self.labels.to_uns()
        records = {
            "prior": self.prior,
            "choice": self.choice,
            "ensemble": stored_members(self.members),
            "labels": labels,
            "features": {name: np.array(found, dtype=object) for name, found in self.features.items()},
            "measured": self.measured,
        }
        return sealed(out | {name: dict(record) for name, record in records.items() if record})

    def of(self, name: str) -> Fit:
        """Return a fit of one modality other than RNA, which decodes it from the same latent space; it is not stored.

        Averages over batches are those of the batches in which it was measured. Gene panels are those of RNA.
        """
        model, covariates = self.model.of(name), replace(self.covariates, panels=None)
        if name in self.measured:
            n_train = tuple(map(int, self.measured[name]))
            # a query may have added batches
            n_train = n_train + (0,) * (len(covariates.batches) - len(n_train))
            covariates = replace(covariates, n_train=(n_train, *covariates.n_train[1:]))
        params = replace(
            self.params,
            model=model.config,
            scale=model.decoder.output.scale,
            library="observed",
            library_source="genes present",
            library_factor=1.0,
            mask_var=None,
        )
        features = self.features[name]
        return replace(
            self,
            params=params,
            covariates=covariates,
            genes=features,
            modelled_g=np.ones(len(features), dtype=bool),
            model=model,
            members=(),
            features={},
            labels=None,
        )

    def loadings(self) -> np.ndarray | None:
        """Return the slopes of the decoded logits in z, float32 (genes, d); None unless the decoder has loadings.

        Genes outside the model are NaN.
        """
        config = self.params.model
        if not self.model.decoder.body.has_loadings:
            return None
        loadings_gd = np.full((len(self.genes), config.n_latent), np.nan, dtype=np.float32)
        weight = self.model.decoder.location.weight.detach().cpu().numpy()
        # further columns belong to the condition, further rows to the remainder
        loadings_gd[self.modelled_g] = weight[: config.n_genes, : config.n_latent]
        return loadings_gd

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> Fit:
        """Read a fit that :meth:`to_uns` stored; raises ``ValueError`` if it is damaged, or needs a class that is missing."""
        _check_parts(stored)
        try:
            fit = cls._read(upgraded(stored))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, NotRegisteredError) and intact(stored):
                raise NotRegisteredError(missing_class(error), error.kind, error.name) from error
            why = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            why = why.removeprefix("The stored fit is damaged: ").rstrip(".")
            changed = changed_class(stored, why) if intact(stored) else None
            msg = changed or f"The stored fit is damaged: {why}. {ADVICE}"
            raise ValueError(msg) from error
        if str(stored["format"]) != FIRST:
            check_seal(stored)
        return fit

    @classmethod
    def _read(cls, stored: Mapping[str, Any]) -> Fit:
        params = from_uns(Params, stored["params"])
        covariates = CovariateTable.from_uns(stored.get("covariates", {}))
        genes = np.array([str(name) for name in stored["genes"]["names"]], dtype=object)
        modelled_g = np.asarray(stored["genes"]["modelled"])
        prior = dict(stored.get("prior", {}))
        history = {str(name): np.asarray(values) for name, values in stored["history"].items()}
        check_genes(genes, modelled_g)
        check_sizes(params, covariates, genes, modelled_g)
        check_conditions(params, prior)
        check_history(params, history)
        features = {
            str(name): np.array([str(one) for one in np.asarray(found).reshape(-1)], dtype=object)
            for name, found in stored.get("features", {}).items()
        }
        measured = {str(name): np.asarray(n, dtype=np.int64) for name, n in stored.get("measured", {}).items()}
        check_features(params, features, measured)
        members = load_members(stored.get("ensemble", {}), params.model)
        width = params.model.n_latent * (1 + len(members))
        return cls(
            params,
            covariates,
            genes,
            modelled_g,
            load_weights(params.model, stored["weights"]),
            history,
            Diagnostics(stored.get("diagnostics", {})),
            prior,
            dict(stored.get("choice", {})),
            members,
            features,
            measured,
            LabelModel.from_uns(stored.get("labels", {}), width, params.model.n_genes),
        )


class Diagnostics(dict[str, Any]):
    """The diagnosis of a fit; the error for a missing entry names the call that writes it."""

    def __missing__(self, name: str) -> Any:
        msg = f"The diagnostics of the fit lack {name!r}. Compute them with vx.tl.diagnose(adata)."
        raise KeyError(msg)


def _check_parts(stored: Mapping[str, Any]) -> None:
    """Raise unless all parts are present and mappings, and there are no others."""
    missing = [part for part in PARTS if not isinstance(stored.get(part), Mapping)]
    missing += [
        part
        for part in FURTHER
        if part not in ("format", NAME) and part in stored and not isinstance(stored[part], Mapping)
    ]
    if missing:
        msg = f"The stored fit lacks {missing}: it is damaged, or parts of uns were removed. {ADVICE}"
        raise ValueError(msg)
    unknown = sorted(set(map(str, stored)) - {*PARTS, *FURTHER})
    if unknown:
        msg = f"The stored fit holds {unknown}, which are not parts of a fit: it is damaged, or something was added. Delete these entries of uns[key]."
        raise ValueError(msg)
