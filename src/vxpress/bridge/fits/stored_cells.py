"""Read the results of a fit for every cell from an AnnData: enough to decode without counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from anndata import AnnData

from vxpress._keys import Keys
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.read.columns import find_column, get_array, is_real
from vxpress.bridge.read.covariates import Batches
from vxpress.bridge.read.joint import has_modality, joint_of
from vxpress.bridge.read.matrix import count_blocks
from vxpress.bridge.read.modalities import core_name
from vxpress.core.blocks import Block, Z
from vxpress.core.covariates import Covariates
from vxpress.core.inference.posterior import Encoded


@dataclass(frozen=True)
class StoredCells:
    """A fit and its results for every cell: the posterior of all latent blocks but a size factor, and covariates.

    In the view that keeps the effects of optional covariates, their categories are hidden in ``covariates``.
    """

    fit: Fit
    keys: Keys
    encoded: Encoded
    covariates: Covariates
    modality: str | None = None
    """The modality that the fit describes here, by its name in the model, if it is not RNA."""

    @classmethod
    def find(cls, adata: AnnData, model: Model, key: str, *, keep: bool = False) -> StoredCells:
        """Read the results named ``key`` from ``adata``, and the fit from there or from ``model``.

        ``keep`` selects the view that keeps the effects of optional covariates.
        """
        fit = find_fit(adata, model, key)
        keys = view_of(fit, key, keep=keep)
        encoded = stored_posterior(adata, keys, fit.model.decoded_blocks)
        covariates = fit.covariates.read(adata.obs, labels=False)
        covariates = fit.model.conditioner.hide(covariates) if keep else covariates
        joint = joint_of(adata)
        if joint is None or joint.shown == fit.params.modalities[0]:
            return cls(fit, keys, encoded, covariates)
        name = core_name(joint.shown)
        return cls(fit.of(name), keys, encoded, covariates, name)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the covariates that are hidden."""
        return fit_optional(self.fit) if self.keys.view else ()

    def decoding_batches(self, transform_batch: Batches | None) -> tuple[int | None, ...]:
        """Return the codes of the batches to decode under, None for the cell's own; if the batch is hidden, there is only that."""
        table = self.fit.covariates
        if table.batch_key not in self.kept:
            return table.decoding_batches(transform_batch)
        if transform_batch is not None:
            msg = (
                f"transform_batch={transform_batch!r} was given with keep=True, which keeps the effect of the batch, "
                f"{table.batch_key!r}: cells are then decoded without one. Leave one of the two out."
            )
            raise ValueError(msg)
        return (None,)


def fit_optional(fit: Fit) -> tuple[str, ...]:
    """Return the names of the optional covariates of a fit."""
    return tuple(fit.covariates.categorical[k][0] for k in fit.params.model.optional)


def view_of(fit: Fit, key: str, *, keep: bool) -> Keys:
    """Return the slots of a fit in the view that a call asks for."""
    if not isinstance(keep, (bool, np.bool_)):
        optional = fit_optional(fit)
        msg = f"keep={keep!r} was given; True, which keeps the effects of all optional covariates of the fit ({list(optional)}), or False is expected."
        raise ValueError(msg)
    keys = Keys.of(key)
    if not keep:
        return keys
    if not fit.params.model.optional:
        msg = (
            "keep=True was given, but the fit has no optional covariates, so there is nothing to keep. Fit with "
            "optional_covariate_keys=['condition'], or leave keep= out."
        )
        raise ValueError(msg)
    return keys.kept()


def stored_library(adata: AnnData, keys: Keys) -> np.ndarray:
    """Read the size factor of every cell, float64 (n,), that the fit or ``vx.tl.encode`` wrote."""
    if keys.library not in adata.obs:
        msg = f"adata.obs lacks {keys.library!r}, the size factors of the fit. Write them with vx.tl.encode(adata, model=...)."
        raise KeyError(msg)
    column = find_column(adata.obs, keys.library)
    values = column.to_numpy(dtype=np.float64, na_value=np.nan) if is_real(column.dtype) else np.array([np.nan])
    if not (np.isfinite(values).all() and (values >= 0).all()):
        msg = (
            f"adata.obs[{keys.library!r}] holds values that are not size factors (NaN or negative). Write it again with "
            "vx.tl.encode(adata, model=...)."
        )
        raise ValueError(msg)
    return values


def layer_of(adata: AnnData, cells: StoredCells) -> str | None:
    """Return the layer that the fit read; a modality other than RNA may lack it, and was then read from ``X``."""
    layer = cells.fit.params.layer
    return None if cells.modality is not None and layer not in adata.layers else layer


def library_of(adata: AnnData, cells: StoredCells) -> np.ndarray:
    """Return the size factor of every cell for the modality that ``cells`` describe, float64 (n,), 0 in cells without it.

    For RNA it is the one that the fit wrote, for other modalities the number of counts; it is 1 if a size factor
    does not enter.
    """
    joint = joint_of(adata)
    if cells.modality is None or joint is None:
        return stored_library(adata, cells.keys)
    scalable = cells.fit.model.decoder.output.scalable
    try:
        blocks = count_blocks(adata, layer_of(adata, cells))
        counted_n = np.concatenate([np.asarray(block.sum(1, dtype=np.float64)).reshape(-1) for _, block in blocks])
    except (ValueError, KeyError):
        if scalable:
            raise
        # without counts, cells are compared by the expectation of the model
        return has_modality(joint, joint.shown).astype(np.float64)
    return counted_n if scalable else (counted_n > 0).astype(np.float64)


def stored_latent(adata: AnnData, fit: Fit, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
    """Read posterior mean and variance of z, float32 (n, d)."""
    encoded = stored_posterior(adata, keys, {Z: fit.model.state})
    return encoded.mean_nd, encoded.var_nd


def stored_ensemble(adata: AnnData, fit: Fit, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
    """Read posterior means and variances of z of all models of a fit side by side, float32 (n, models x d)."""
    mean, var = keys.of_ensemble()
    missing = [name for name in (mean, var) if name not in adata.obsm]
    if missing:
        msg = (
            f"adata.obsm lacks {missing}, the posteriors of the {1 + len(fit.members)} models of this fit. Write them with "
            "vx.tl.encode(adata, model=...), or use the first model alone: ensemble=False."
        )
        raise KeyError(msg)
    return _moments(adata, mean, var, (1 + len(fit.members)) * fit.params.model.n_latent)


def stored_posterior(adata: AnnData, keys: Keys, blocks: Mapping[str, Block]) -> Encoded:
    """Read the posterior of latent blocks; the message of an error names the call that writes it."""
    missing = [name for block in blocks.values() for name in block.moments(keys) if name not in adata.obsm]
    if missing:
        msg = f"adata.obsm lacks {missing}. Write the posterior of these cells with vx.tl.encode(adata, model=...)."
        raise KeyError(msg)
    moments = {name: _moments(adata, *block.moments(keys), block.n_noise) for name, block in blocks.items()}
    return Encoded(*({name: pair[i] for name, pair in moments.items()} for i in range(2)))


def _moments(adata: AnnData, mean: str, var: str, n_columns: int) -> tuple[np.ndarray, np.ndarray]:
    rewrite = "Write it again with vx.tl.encode(adata, model=...)."
    mean_nd, var_nd = (get_array(adata.obsm, name, rewrite) for name in (mean, var))
    expected = (adata.n_obs, n_columns)
    if mean_nd.shape != expected or var_nd.shape != expected:
        msg = (
            f"adata.obsm[{mean!r}] has shape {mean_nd.shape}, but the fit writes {expected}: it belongs to another "
            "fit. Write it again with vx.tl.encode(adata, model=...)."
        )
        raise ValueError(msg)
    if not (np.isfinite(mean_nd).all() and np.isfinite(var_nd).all() and (var_nd > 0).all()):
        msg = (
            f"adata.obsm[{mean!r}] or [{var!r}] holds values that are not a posterior (NaN, or a variance "
            "that is not positive). Write it again with vx.tl.encode(adata, model=...)."
        )
        raise ValueError(msg)
    return mean_nd, var_nd


def stored_split(adata: AnnData, keys: Keys) -> np.ndarray | None:
    """Read the split that the fit wrote: ``"train"``, ``"validation"`` or ``"query"`` of every cell, object (n,).

    Missing values are ``""``. None if ``obs`` has no such column.
    """
    if keys.split not in adata.obs:
        return None
    column = find_column(adata.obs, keys.split).astype(object)
    # concatenation leaves missing values
    return column.where(column.notna(), "").astype(str).to_numpy(dtype=object)
