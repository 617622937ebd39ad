"""Gene panels: which genes were measured in the cells of each batch, or of each category of another column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress.bridge.read.columns import get_categories, get_names
from vxpress.bridge.read.counts import CountData

# entry of varm with one boolean column for each panel
GENE_PANELS = "gene_panels"


@dataclass(frozen=True)
class PanelTable:
    """The panels of a fit: the column of ``obs`` with their names, and which modelled genes each measured, bool (p, g)."""

    key: str
    names: tuple[str, ...]
    measured_pg: np.ndarray

    @classmethod
    def learn(cls, adata: AnnData, key: str, modelled_g: np.ndarray, counts: CountData) -> PanelTable:
        """Read the panels of the cells of a fit."""
        found = get_categories(adata.obs, key, argument="panel_key")
        all_pg = np.stack([_measured(adata, key, name) for name in found.names])
        measured_pg, beyond = all_pg[:, modelled_g], int((~all_pg[:, ~modelled_g]).any(0).sum())
        genes = np.asarray(adata.var_names)[modelled_g]
        nowhere = genes[~measured_pg.any(0)]
        if len(nowhere):
            msg = (
                f"{len(nowhere)} of the modelled genes are measured in no panel, by adata.varm[{GENE_PANELS!r}] (for example "
                f"{list(nowhere[:3])}). Exclude them with mask_var=, or correct the table."
            )
            raise ValueError(msg)
        empty = [name for name, row in zip(found.names, measured_pg, strict=True) if not row.any()]
        if empty:
            msg = f"The panel {empty[0]!r} has none of the modelled genes. Remove its cells, or model genes that it measured (mask_var=)."
            raise ValueError(msg)
        table = cls(key, tuple(found.names), measured_pg)
        table.check_counts(found.code_n, counts, genes)
        if beyond:
            logg.warning(
                f"{beyond} genes outside the model (mask_var=) are not measured by all panels. Their denoised values are predicted from "
                "the zeros of these panels as well, and are too low. Model these genes, or leave them out."
            )
        n_p = measured_pg.sum(1)
        logg.info(f"    {len(table.names)} panels of {n_p.min()} to {n_p.max()} of the {len(genes)} modelled genes")
        return table

    def check_counts(self, code_n: np.ndarray, counts: CountData, genes: np.ndarray) -> None:
        """Raise ``ValueError`` if a gene has counts where it was not measured; counts on disk are not read for this."""
        if not sparse.issparse(counts.inside):
            return
        sums_pg = panel_sums(counts.inside, code_n, len(self.names))
        wrong = np.argwhere((sums_pg > 0) & ~self.measured_pg)
        if len(wrong):
            p, g = wrong[0]
            msg = (
                f"By adata.varm[{GENE_PANELS!r}], the panel {self.names[p]!r} did not measure {genes[g]!r}, but its cells have "
                f"{sums_pg[p, g]:g} counts of it ({len(wrong)} such pair(s) of panel and gene). Correct the table, or find the panels "
                f"anew: vx.pp.gene_panels(adata, {self.key!r})."
            )
            raise ValueError(msg)

    def codes(self, obs: pd.DataFrame) -> np.ndarray:
        """Return the panel of each cell, int64 (n,); raises ``ValueError`` for a panel that the fit does not know."""
        found = get_names(obs, self.key)
        at = np.asarray(found.among(self.names))
        if (at < 0).any():
            unknown = [name for name, k in zip(found.names, at, strict=True) if k < 0]
            msg = (
                f"obs[{self.key!r}] names the panels {unknown[:5]}, which are unknown to the fit (it knows {list(self.names)[:5]}). "
                "vx.tl.encode(adata, model=...) adds the panels of new cells."
            )
            raise ValueError(msg)
        return np.asarray(at[found.code_n], dtype=np.int64)

    def with_panels_of(self, adata: AnnData, genes: np.ndarray, present_g: np.ndarray) -> PanelTable:
        """Return the table with the new panels of other cells appended; ``present_g`` are the modelled ``genes`` in ``adata``."""
        found = get_names(adata.obs, self.key)
        at = np.asarray(found.among(self.names))
        new = [name for name, k in zip(found.names, at, strict=True) if k < 0]
        for name, k in zip(found.names, at, strict=True):
            if k >= 0:
                lacking = genes[self.measured_pg[k] & ~present_g]
                if len(lacking):
                    msg = (
                        f"{len(lacking)} genes of the panel {name!r} are missing from adata.var_names (for example "
                        f"{list(lacking[:3])}). Give the panel of these cells another name in obs[{self.key!r}]."
                    )
                    raise ValueError(msg)
        rows = [self.measured_pg]
        for name in new:
            row = present_g.copy()
            if GENE_PANELS in adata.varm:
                measured = pd.Series(_measured(adata, self.key, name), index=adata.var_names)
                row &= measured.reindex(genes, fill_value=False).to_numpy(dtype=bool)
            if not row.any():
                msg = f"The panel {name!r} has none of the modelled genes."
                raise ValueError(msg)
            rows.append(row[None])
        return replace(self, names=(*self.names, *new), measured_pg=np.concatenate(rows))

    def to_uns(self) -> dict[str, Any]:
        """Return the table as a mapping."""
        return {"key": self.key, "names": np.array(self.names, dtype=object), "measured": self.measured_pg}

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> PanelTable:
        """Read the table that :meth:`to_uns` stored; raises ``ValueError`` if a value is impossible."""
        names = tuple(str(name) for name in np.asarray(stored["names"]).reshape(-1))
        measured = np.asarray(stored["measured"])
        if measured.dtype.kind != "b" or measured.ndim != 2 or len(measured) != len(names) or not measured.any(1).all():
            msg = f"its panels {list(names)} have a table of shape {measured.shape} and type {measured.dtype}"
            raise ValueError(msg)
        return cls(str(np.asarray(stored["key"])[()]), names, measured)


def panel_sums(counts: sparse.csr_matrix, code_n: np.ndarray, n_panels: int) -> np.ndarray:
    """Add up the counts of the cells of each panel, float64 (p, g)."""
    n = len(code_n)
    place = sparse.csr_matrix((np.ones(n), (code_n, np.arange(n))), shape=(n_panels, n))
    return np.asarray((place @ counts.astype(np.float64)).todense())


def _measured(adata: AnnData, key: str, name: str) -> np.ndarray:
    """Return which genes a panel measured, from ``varm``."""
    if GENE_PANELS not in adata.varm:
        msg = (
            f"panel_key={key!r} needs to know which genes each panel measured, but adata.varm has no {GENE_PANELS!r}. "
            f"vx.pp.gene_panels(adata, {key!r}) finds them; or write a pandas.DataFrame with one boolean column for each panel."
        )
        raise KeyError(msg)
    table = adata.varm[GENE_PANELS]
    where = f"adata.varm[{GENE_PANELS!r}]"
    if not isinstance(table, pd.DataFrame):
        msg = f"{where} is of type {type(table).__name__}; a pandas.DataFrame with one boolean column for each panel is expected."
        raise TypeError(msg)
    columns = {str(column): column for column in table.columns}
    if name not in columns:
        msg = f"{where} has no column for the panel {name!r} of obs[{key!r}] (found: {list(columns)[:5]}). vx.pp.gene_panels(adata, {key!r}) writes it."
        raise KeyError(msg)
    values = table[columns[name]]
    if values.isna().any() or not set(values.unique()) <= {True, False}:
        msg = f"{where}[{name!r}] has dtype {values.dtype}; one boolean for each gene is expected, without missing values."
        raise ValueError(msg)
    return values.to_numpy(dtype=bool)
