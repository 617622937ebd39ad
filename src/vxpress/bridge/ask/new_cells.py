"""Draw new cells from the prior of a fit: latent state, covariates, size factor and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from vxpress._keys import Keys
from vxpress.bridge.ask.generation import (
    NO_NAME,
    Columns,
    Labels,
    TrainingCells,
    get_column_names,
    requested_covariates,
    requested_labels,
    requested_library,
)
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.query import log_library_of, needs_labels
from vxpress.bridge.read.columns import find_column, get_numbers
from vxpress.core.covariates import Covariates
from vxpress.core.inference.predictive import likelihood_draws

GENERATED = "generated"


@dataclass(frozen=True)
class NewCells:
    """The cells to draw: their number, code of the label, given covariates, and size factor.

    Without codes, labels are drawn; without size factors, these are drawn from their own prior or taken from training cells.
    """

    fit: Fit
    n: int
    code_n: np.ndarray | None
    given: dict[str, Any]
    library_n: np.ndarray | None
    library_from_prior: bool

    @classmethod
    def requested(
        cls,
        adata: AnnData,
        fit: Fit,
        *,
        n_obs: int | None,
        labels: Labels,
        covariates: Mapping[str, Any] | None,
        library: Any,
    ) -> NewCells:
        """Check what the arguments ask for."""
        columns, key = Columns.of(fit), fit.condition_key
        n, code_n = requested_labels(labels, n_obs, key, fit.conditions, _hint(columns))
        given = requested_covariates(covariates, columns, n)
        if key in given:
            msg = f"covariates= names {key!r}, which is the label of the prior. Give it as labels=, which sets both."
            raise ValueError(msg)
        from_prior = _library_from_prior(library, adata, fit)
        return cls(fit, n, code_n, given, None if from_prior else requested_library(library, n), from_prior)

    def draw(self, adata: AnnData, keys: Keys, n_neighbors: int | None, rng: np.random.Generator) -> AnnData:
        """Draw the cells; training cells of ``adata`` give what was not requested."""
        fit, code_n = self.fit, self.code_n
        if fit.condition_key is not None and code_n is None:
            shares = fit.model.prior.log_share_c.detach().double().exp().numpy()
            code_n = rng.choice(len(shares), self.n, p=shares / shares.sum())
        seeds = rng.integers(2**62, size=2)
        z_nd = self._latent(code_n, int(seeds[0]))
        obs, known, library_n = self._columns(adata, keys, z_nd, code_n, n_neighbors=n_neighbors, rng=rng)
        table = fit.covariates.read(obs, labels=needs_labels(fit))
        if library_n is None:
            library_n = self._library(table, rng)
        x = likelihood_draws(fit.model, z_nd, table, log_library_of(library_n), seed=int(seeds[1]))
        for name, categories in known.items():
            values = obs[name].astype(object)
            # combinations of perturbations need not be among those of the fit
            further = [value for value in values.unique() if value not in (*categories, NO_NAME)]
            obs[name] = pd.Categorical(values.where(values != NO_NAME), categories=[*categories, *further])
        obs[keys.library] = library_n
        obs[keys.split] = pd.Categorical([GENERATED] * self.n)
        var = pd.DataFrame(index=pd.Index(fit.genes[fit.modelled_g], dtype=object))
        return AnnData(x, obs=obs, var=var, obsm={keys.latent: z_nd.numpy()})

    @torch.no_grad()
    def _latent(self, code_n: np.ndarray | None, seed: int) -> torch.Tensor:
        codes = None if code_n is None else torch.from_numpy(np.asarray(code_n, dtype=np.int64))
        z_nd: torch.Tensor = self.fit.model.prior.sample(self.n, torch.Generator().manual_seed(seed), codes)
        return z_nd.float()

    def _columns(
        self,
        adata: AnnData,
        keys: Keys,
        z_nd: torch.Tensor,
        code_n: np.ndarray | None,
        *,
        n_neighbors: int | None,
        rng: np.random.Generator,
    ) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]], np.ndarray | None]:
        """Return the columns of ``obs``, the categories of those that have some, and size factors.

        Columns and size factors that were not requested come from training cells near in the latent space.
        """
        fit, columns, condition_key, names = self.fit, Columns.of(self.fit), self.fit.condition_key, self.fit.conditions
        obs = pd.DataFrame(self.given, index=[f"{GENERATED}-{i}" for i in range(self.n)])
        if condition_key is not None:
            # the condition after the named ones is that of cells without a label
            obs[condition_key] = np.array([*names, NO_NAME], dtype=object)[code_n]
        missing = [name for name in columns.names if name not in obs]
        known = columns.categories | ({} if condition_key is None else {condition_key: names})
        without_library = self.library_n is None and not self.library_from_prior
        needed = ["library"] * without_library + ["covariates"] * bool(missing)
        if not needed:
            return obs, known, self.library_n
        cells = TrainingCells.find(adata, fit, keys, needed)
        match = {name: obs[name].to_numpy() for name in obs if name in known}
        partner_n = cells.partners(z_nd.numpy(), match, known, n_neighbors, rng)
        for name in missing:
            if name in columns.doses:
                column = _as_written(find_column(cells.obs, name))
            else:
                number = name in columns.numbers
                column = get_numbers(cells.obs, name) if number else get_column_names(cells.obs, name, known[name])
            obs[name] = column[partner_n]
        return obs, known, cells.library_n[partner_n] if without_library else self.library_n

    @torch.no_grad()
    def _library(self, table: Covariates, rng: np.random.Generator) -> np.ndarray:
        """Draw size factors from their own prior."""
        noise_n1 = torch.from_numpy(rng.standard_normal((self.n, 1)).astype(np.float32))
        return np.asarray(self.fit.model.sample_log_library(table, noise_n1).double().exp().numpy()[:, 0])


def _as_written(doses: pd.Series) -> np.ndarray:
    """Return doses as numbers if all are, and otherwise as text, so that a file can hold them."""
    numbers = pd.to_numeric(doses.astype(object), errors="coerce")
    same = numbers.notna() == doses.notna()
    return (
        numbers.to_numpy(dtype=float) if bool(same.all()) else doses.astype(object).astype(str).to_numpy(dtype=object)
    )


def _hint(columns: Columns) -> str:
    covariate = (
        f" Pass labels that are covariates of the fit ({', '.join(columns.categories)}) as covariates=."
        if columns.categories
        else ""
    )
    return f"Learn p(z | label) first: vx.tl.fit_prior(adata, condition_key='cell_type').{covariate}"


def _library_from_prior(library: object, adata: AnnData, fit: Fit) -> bool:
    """Return whether size factors are drawn from their own prior."""
    latent = fit.model.infers_library
    if isinstance(library, str):
        if library != "prior":
            msg = f"library={library!r} was given; a number, an array or 'prior' is expected."
            raise ValueError(msg)
        if not latent:
            msg = "library='prior' needs a fit with library='latent'; the size factors of this fit were observed. Leave library= out, or give numbers."
            raise ValueError(msg)
        return True
    return library is None and latent and adata.n_obs == 0
