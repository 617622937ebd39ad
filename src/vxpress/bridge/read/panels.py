"""Gene panels: which genes were measured in the cells of each batch, or of each category of another column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress.bridge.read.columns import get_categories, get_names
from vxpress.bridge.read.counts import CountData
from vxpress.bridge.read.survey import Elsewhere
from vxpress.core.covariates import Covariates
from vxpress.core.data import Counts, walk

# entry of varm with one boolean column for each panel
GENE_PANELS = "gene_panels"
# share of the common genes outside the model that a panel measures, from which their molecules are estimated from these
LEAST_COVERED = 0.1
# rows that are converted to double precision at a time
ROWS = 4_096


@dataclass(frozen=True)
class PanelTable:
    """The panels of a fit: the column of ``obs`` with their names, and which genes each measured.

    ``measured_pg`` are the modelled genes, bool (p, g), and ``outside_pg`` the others. The size factor of a cell counts the measured
    modelled genes, and those genes outside the model that all panels of the fit measured. ``common_g`` are the shares of the latter
    in their sum over all cells of the fit, float (others,), 0 for the rest, and ``remainder`` is their share in all
    molecules that size factors count.
    """

    key: str
    names: tuple[str, ...]
    measured_pg: np.ndarray
    outside_pg: np.ndarray
    common_g: np.ndarray
    remainder: float = 0.0

    @classmethod
    def learn(cls, adata: AnnData, key: str, modelled_g: np.ndarray, counts: CountData) -> PanelTable:
        """Read the panels of the cells of a fit."""
        found = get_categories(adata.obs, key, argument="panel_key")
        all_pg = np.stack([_measured(adata, key, name) for name in found.names])
        measured_pg, outside_pg = all_pg[:, modelled_g], all_pg[:, ~modelled_g]
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
        unmeasured = int((~outside_pg.any(0)).sum())
        if unmeasured:
            logg.warning(
                f"{unmeasured} genes outside the model (mask_var=) are measured in no panel. Their denoised values are close to 0 and "
                "say nothing. Leave these genes out."
            )
        common_g = _common_shares(counts, np.asarray(outside_pg.all(0)))
        table = cls(key, tuple(found.names), measured_pg, outside_pg, common_g)
        table.check_counts(found.code_n, counts.inside, measured_pg, genes)
        table.check_counts(found.code_n, counts.outside, outside_pg, np.asarray(adata.var_names)[~modelled_g])
        beyond, whole = table.common_molecules(counts, found.code_n).sum(), table.library(counts, found.code_n).sum()
        table = replace(table, remainder=float(beyond / max(whole, 1.0)))
        n_p = measured_pg.sum(1)
        logg.info(f"    {len(table.names)} panels of {n_p.min()} to {n_p.max()} of the {len(genes)} modelled genes")
        return table

    def check_counts(
        self,
        code_n: np.ndarray,
        counts: sparse.csr_matrix | Elsewhere | None,
        measured_pg: np.ndarray,
        genes: np.ndarray,
    ) -> None:
        """Raise ``ValueError`` if a gene has counts where it was not measured; counts on disk are not read for this."""
        if counts is None or isinstance(counts, Elsewhere):
            return
        sums_pg = panel_sums(counts, code_n, len(self.names))
        wrong = np.argwhere((sums_pg > 0) & ~measured_pg)
        if len(wrong):
            p, g = wrong[0]
            msg = (
                f"By adata.varm[{GENE_PANELS!r}], the panel {self.names[p]!r} did not measure {genes[g]!r}, but its cells have "
                f"{sums_pg[p, g]:g} counts of it ({len(wrong)} such pair(s) of panel and gene). Correct the table, or find the panels "
                f"anew: vx.pp.gene_panels(adata, {self.key!r})."
            )
            raise ValueError(msg)

    def library(self, counts: CountData, code_n: np.ndarray, present_g: np.ndarray | None = None) -> np.ndarray:
        """Return the size factor of each cell, float64 (n,): what it counts is the same genes outside the model in all cells.

        Counts of genes that a panel did not measure, such as those of generated cells, do not count; counts on disk are taken to have
        none. For panels that the fit did not know, which may lack some of these, their molecules are estimated from those of the
        others, or of the modelled genes if the others are few. ``present_g`` are the genes outside the model that
        ``counts`` have; by default all.
        """
        measured_n = counts.inside_n - self._unmeasured(counts, code_n)
        return np.asarray(measured_n + self.common_molecules(counts, code_n, present_g))

    def _unmeasured(self, counts: CountData, code_n: np.ndarray) -> np.ndarray:
        """Return the molecules of modelled genes that the panel of each cell did not measure, float64 (n,); 0 for counts on disk."""
        found_n, inside = np.zeros(len(code_n)), counts.inside
        if isinstance(inside, Elsewhere):
            return found_n
        for p, measured_g in enumerate(self.measured_pg):
            rows = np.flatnonzero(code_n == p)
            if len(rows) and not measured_g.all():
                found_n[rows] = inside[rows] @ (~measured_g).astype(np.float64)
        return found_n

    def common_molecules(
        self, counts: CountData, code_n: np.ndarray, present_g: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the molecules of genes outside the model that all panels of the fit measured, float64 (n,)."""
        if not (self.common_g > 0).any():
            return np.zeros(len(code_n))
        seen_pg = self.outside_pg if present_g is None else self.outside_pg & present_g
        covered_n = np.clip(seen_pg @ self.common_g, 0.0, 1.0)[code_n]
        found_n = _sums_of(counts, self.common_g > 0)
        few_n = covered_n < LEAST_COVERED
        whole_n = found_n / np.where(covered_n > 1.0 - 1e-9, 1.0, np.maximum(covered_n, LEAST_COVERED))
        return np.where(few_n, counts.inside_n * self.remainder / (1.0 - self.remainder), whole_n)

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

    def with_panels_of(
        self, adata: AnnData, genes: np.ndarray, modelled_g: np.ndarray, present_g: np.ndarray
    ) -> PanelTable:
        """Return the table with the new panels of other cells appended.

        ``genes`` are those of the fit, of which ``modelled_g`` are modelled and ``present_g`` are in ``adata``.
        """
        found = get_names(adata.obs, self.key)
        at = np.asarray(found.among(self.names))
        new = [name for name, k in zip(found.names, at, strict=True) if k < 0]
        for name, k in zip(found.names, at, strict=True):
            if k >= 0:
                lacking = genes[modelled_g][self.measured_pg[k] & ~present_g[modelled_g]]
                if len(lacking):
                    msg = (
                        f"{len(lacking)} genes of the panel {name!r} are missing from adata.var_names (for example "
                        f"{list(lacking[:3])}). Give the panel of these cells another name in obs[{self.key!r}]."
                    )
                    raise ValueError(msg)
        rows, outside = [self.measured_pg], [self.outside_pg]
        for name in new:
            row = present_g.copy()
            if GENE_PANELS in adata.varm:
                measured = pd.Series(_measured(adata, self.key, name), index=adata.var_names)
                row &= measured.reindex(genes, fill_value=False).to_numpy(dtype=bool)
            if not row[modelled_g].any():
                msg = f"The panel {name!r} has none of the modelled genes."
                raise ValueError(msg)
            rows.append(row[None, modelled_g])
            outside.append(row[None, ~modelled_g])
        return replace(
            self, names=(*self.names, *new), measured_pg=np.concatenate(rows), outside_pg=np.concatenate(outside)
        )

    def to_uns(self) -> dict[str, Any]:
        """Return the table as a mapping."""
        return {
            "key": self.key,
            "names": np.array(self.names, dtype=object),
            "measured": self.measured_pg,
            "outside": self.outside_pg,
            "common": self.common_g,
            "remainder": self.remainder,
        }

    @classmethod
    def from_uns(cls, stored: Mapping[str, Any]) -> PanelTable:
        """Read the table that :meth:`to_uns` stored; raises ``ValueError`` if a value is impossible."""
        names = tuple(str(name) for name in np.asarray(stored["names"]).reshape(-1))
        measured, outside = (np.asarray(stored[part]) for part in ("measured", "outside"))
        for table in (measured, outside):
            if table.dtype.kind != "b" or table.ndim != 2 or len(table) != len(names) or not measured.any(1).all():
                msg = f"its panels {list(names)} have a table of shape {table.shape} and type {table.dtype}"
                raise ValueError(msg)
        common_g, remainder = np.asarray(stored["common"]), float(np.asarray(stored["remainder"])[()])
        possible = common_g.dtype.kind == "f" and common_g.shape == outside.shape[1:] and bool((common_g >= 0).all())
        if not possible or not 0.0 <= remainder < 1.0:
            msg = f"its panels have shares of genes outside the model of shape {common_g.shape}, and a remainder of {remainder}"
            raise ValueError(msg)
        return cls(str(np.asarray(stored["key"])[()]), names, measured, outside, common_g, remainder)


def panel_sums(counts: sparse.csr_matrix, code_n: np.ndarray, n_panels: int) -> np.ndarray:
    """Add up the counts of the cells of each panel, float64 (p, g)."""
    sums_pg = np.zeros((n_panels, counts.shape[1]))
    for start in range(0, len(code_n), ROWS):
        code_m = code_n[start : start + ROWS]
        place = sparse.csr_matrix(
            (np.ones(len(code_m)), (code_m, np.arange(len(code_m)))), shape=(n_panels, len(code_m))
        )
        sums_pg += place @ counts[start : start + ROWS].astype(np.float64)
    return sums_pg


def _common_shares(counts: CountData, common_g: np.ndarray) -> np.ndarray:
    """Return the shares of the genes outside the model that all panels measured, (others,), 0 for the other genes."""
    if counts.outside is None or not common_g.any():
        return np.zeros(len(common_g))
    outside = counts.outside
    sums_g = outside.sums_g if isinstance(outside, Elsewhere) else Counts.from_scipy(outside).sums_g.numpy()
    found_g = np.where(common_g, sums_g, 0.0)
    return np.asarray(found_g / max(found_g.sum(), 1.0))


def _sums_of(counts: CountData, chosen_g: np.ndarray) -> np.ndarray:
    """Return the molecules of some genes outside the model in each cell, float64 (n,)."""
    outside = counts.outside
    assert outside is not None  # noqa: S101 - some are chosen
    if chosen_g.all():
        return counts.total_n - counts.inside_n
    if not isinstance(outside, Elsewhere):
        return np.asarray(outside @ chosen_g.astype(np.float64))
    n = len(counts.inside_n)
    nothing = Covariates(torch.zeros(n, 0, dtype=torch.int64), torch.zeros(n, 0))
    source = counts.cells_outside(torch.zeros(n, 1), nothing)
    assert source is not None  # noqa: S101 - as above
    sums_n, weight_g = np.zeros(n), torch.from_numpy(chosen_g.astype(np.float64))
    for part, batch in walk(source, dense=False, stage="counting molecules of common genes"):
        where, values = batch.entries()
        found_n = torch.zeros(len(batch), dtype=torch.float64)
        found_n.index_add_(0, where // len(chosen_g), values.double() * weight_g[where % len(chosen_g)])
        sums_n[part] = found_n.numpy()
    return sums_n


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
