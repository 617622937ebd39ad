"""Read the cells of an AnnData for a fit: all it knows, or also new categories and with missing genes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import LIBRARY_SIZE
from vxpress._unset import Unset
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.joined_cells import with_modalities
from vxpress.bridge.read.adata import check_gene_names
from vxpress.bridge.read.columns import find_column, is_real
from vxpress.bridge.read.counts import CountData, read_counts
from vxpress.bridge.read.library import MEASURED, TOLERANCE, log_library, read_library
from vxpress.bridge.read.panels import PanelTable
from vxpress.core.covariates import Covariates
from vxpress.core.data import Source, have_counts
from vxpress.core.query.masked import Missing
from vxpress.core.query.panels import with_panels
from vxpress.core.query.surgery import extend

# with fewer than this share of the modelled genes, too little is known about a cell to predict the missing ones
MIN_SHARE = 0.05
# size factor that replaces zero: such a cell has no molecules, and none are drawn
NO_MOLECULE = 1e-30


@dataclass(frozen=True)
class Query:
    """Cells, the fit extended by their categories, missing genes, and size factors.

    ``observed_n`` is the library size, or, if ``missing`` requires it, the number of molecules to estimate the library size
    from. ``added`` are the new categories of each categorical covariate.
    """

    fit: Fit
    cells: Source
    added: tuple[tuple[str, ...], ...]
    missing: Missing | None
    observed_n: np.ndarray

    @property
    def n_known(self) -> list[int]:
        """How many categories of each categorical covariate the fit knew."""
        return [
            len(names) - len(more) for (_, names), more in zip(self.fit.covariates.categorical, self.added, strict=True)
        ]

    @property
    def new_n(self) -> np.ndarray:
        """Which cells have a category that the fit did not know and a count in the modelled genes."""
        codes = self.cells.covariates.categorical_nk.numpy()
        counted = have_counts(self.cells).numpy()
        return np.asarray((codes >= np.array(self.n_known, dtype=np.int64)).any(1) & counted)


def read_query(
    adata: AnnData,
    fit: Fit,
    layer: str | Unset | None,
    *,
    labels: bool = False,
    incomplete: bool = False,
    train: bool = False,
) -> Query:
    """Read and check cells for a fit, with genes in its order; ``fit`` is not changed.

    ``labels`` also reads the labels of a dispersion per label. With ``incomplete`` genes may be missing and categories
    may be new; both are warned about (``train`` says that new categories are trained). Otherwise they raise an error.
    """
    check_gene_names(adata)
    position = adata.var_names.get_indexer(fit.genes)
    (_check_shared if incomplete else check_complete)(adata, fit, position)
    same = len(position) == adata.n_vars and bool((position == np.arange(adata.n_vars)).all())
    where = fit.params.layer if isinstance(layer, Unset) else layer
    counts = read_counts(adata, where, fit.modelled_g, None if same else position)
    panels = fit.covariates.panels
    if panels is None:
        missing, observed_n = _missing(adata, fit, counts, position >= 0)
    else:
        # panels say what was not measured
        missing = None
        if incomplete:
            fit = _with_panels(adata, fit, panels, position >= 0)
        observed_n = _library_of_panels(adata, fit, counts, position >= 0)
    table, added = fit.covariates.with_categories_of(adata.obs) if incomplete else (fit.covariates, ())
    covariates = table.read(adata.obs, labels=labels)
    if any(added):
        _warn_new_categories(fit, added, train=train)
        n_added = [len(names) for names in added]
        model = extend(fit.model, n_added, fit.covariates.learned)
        members = tuple(extend(member, n_added, fit.covariates.learned) for member in fit.members)
        params = replace(fit.params, model=model.config)
        fit = replace(fit, covariates=table, model=model, members=members, params=params)
    cells = counts.cells(log_library(observed_n), covariates)
    if fit.features:
        if missing is not None:
            msg = "Modelled genes are missing from adata.var_names; a fit of several modalities needs all of them."
            raise ValueError(msg)
        cells = with_modalities(adata, fit, cells, counts.inside_n > 0, layer=where)
    return Query(fit, cells, added, missing, observed_n)


def _with_panels(adata: AnnData, fit: Fit, panels: PanelTable, present_g: np.ndarray) -> Fit:
    """Return the fit with the panels of other cells that it does not know."""
    table = panels.with_panels_of(adata, fit.genes, fit.modelled_g, present_g)
    new_pg, outside_pg = (torch.from_numpy(part[len(panels.names) :]) for part in (table.measured_pg, table.outside_pg))
    if not len(new_pg):
        return fit
    model, *members = (with_panels(each, new_pg, outside_pg) for each in (fit.model, *fit.members))
    return replace(
        fit,
        model=model,
        members=tuple(members),
        params=replace(fit.params, model=model.config),
        covariates=replace(fit.covariates, panels=table),
    )


def _library_of_panels(adata: AnnData, fit: Fit, counts: CountData, present_g: np.ndarray) -> np.ndarray:
    """Return the size factors of cells with gene panels."""
    table, params = fit.covariates.panels, fit.params
    assert table is not None  # noqa: S101 - the caller checks it
    if params.library_source == MEASURED:
        return table.library(counts, table.codes(adata.obs), present_g[~fit.modelled_g])
    return read_library(adata.obs, counts, params.library_source, params.library, params.library_factor)


def read_scored(adata: AnnData, fit: Fit, layer: str | Unset | None) -> Source:
    """Read cells with counts, in the gene order of the fit, for their count distribution."""
    query = read_query(adata, fit, layer, labels=needs_labels(fit))
    # a latent library is sampled and needs no size factor
    return query.cells if fit.model.infers_library else query.cells.with_library(log_library_of(query.observed_n))


def log_library_of(library_n: np.ndarray) -> torch.Tensor:
    """Compute log size factors, (n, 1) float32, for the count distribution of cells."""
    return log_library(library_n, empty=NO_MOLECULE)


def needs_labels(fit: Fit) -> bool:
    """Whether the count distribution of a cell depends on its label."""
    return fit.params.model.dispersion == "gene-label"


def decoding_covariates(adata: AnnData, fit: Fit) -> Covariates:
    """Read the covariates of the cells; labels only if the dispersion depends on them."""
    return fit.covariates.read(adata.obs, labels=needs_labels(fit))


def _missing(adata: AnnData, fit: Fit, counts: CountData, present: np.ndarray) -> tuple[Missing | None, np.ndarray]:
    """Return what is missing, and the size factors, or the molecules to estimate them from."""
    params = fit.params
    observed_g = torch.from_numpy(present[fit.modelled_g])
    all_modelled, all_outside = bool(observed_g.all()), bool(present[~fit.modelled_g].all())
    if fit.model.infers_library:
        # the encoder of the library uses the modelled genes only
        return (
            (None, counts.total_n)
            if all_modelled
            else (Missing(observed_g, library_known=False, inside=True), counts.inside_n)
        )
    modelled_only = params.library_source == "modelled genes"
    left = _counts_what_is_left(adata, fit, counts, present)
    counted = modelled_only or left or params.library_source == "genes present"
    if not counted or (all_modelled and (modelled_only or all_outside)):
        library_n = read_library(adata.obs, counts, params.library_source, params.library, params.library_factor)
        return (None if all_modelled else Missing(observed_g, library_known=True)), library_n
    # shares refer to modelled genes only, so molecules of other genes count only if none of these genes is missing
    inside = modelled_only or left or not all_outside
    return Missing(
        observed_g, library_known=False, inside=inside, beyond=not modelled_only
    ), counts.inside_n if inside else counts.total_n


def _counts_what_is_left(adata: AnnData, fit: Fit, counts: CountData, present: np.ndarray) -> bool:
    """Return whether ``obs["library_size"]`` is the sum of the genes present, although modelled genes are missing."""
    column = f"obs[{LIBRARY_SIZE!r}]"
    if fit.params.library_source != column or present[fit.modelled_g].all() or LIBRARY_SIZE not in adata.obs:
        return False
    stored = find_column(adata.obs, LIBRARY_SIZE)
    if not is_real(stored.dtype):
        return False
    stored_n = stored.to_numpy(dtype=np.float64, na_value=np.nan)
    if not (stored_n <= counts.total_n * (1 + TOLERANCE) + 0.5).all():
        return False
    logg.warning(
        f"{column} counts only molecules of the genes present, so it is too small for this fit, which counted more genes. Size "
        "factors are estimated from these molecules and the missing genes."
    )
    return True


def check_complete(adata: AnnData, fit: Fit, position: np.ndarray) -> None:
    """Raise if genes of the fit are missing."""
    missing = fit.genes[position < 0]
    if len(missing):
        if len(missing) == len(fit.genes):
            cure = _other_names(adata, fit)
        elif set(missing).isdisjoint(fit.genes[fit.modelled_g]):
            cure = "All modelled genes are present, but the size factor of the fit also counts the other genes: pass the full matrix."
        else:
            cure = (
                "Use the same annotation as the fit, or fit again on the shared genes: "
                "vx.tl.fit_vae(reference[:, reference.var_names.isin(query.var_names)].copy())."
            )
        msg = (
            f"{len(missing)} of the {len(fit.genes)} genes of the fit are missing from adata.var_names (for example "
            f"{list(missing[:5])}). {cure}"
        )
        raise ValueError(msg)


def _other_names(adata: AnnData, fit: Fit) -> str:
    """Say what to do if ``adata`` has none of the genes of the fit."""
    for name, features in zip(fit.params.modalities[1:], fit.features.values(), strict=False):
        if adata.var_names.isin(features).any():
            return f"adata has features of the modality {name!r}: pass a MuData, mudata.MuData({{{name!r}: adata}})."
    return f"adata uses different gene names (for example {adata.var_names[0]!r}): use the annotation of the fit."


def _check_shared(adata: AnnData, fit: Fit, position: np.ndarray) -> None:
    """Raise if too few genes are shared, else report how many are missing."""
    absent = fit.genes[position < 0]
    if not len(absent):
        return
    modelled = fit.genes[fit.modelled_g & (position < 0)]
    n_modelled, example = int(fit.modelled_g.sum()), list((modelled if len(modelled) else absent)[:5])
    n_shared = n_modelled - len(modelled)
    if len(absent) == len(fit.genes):
        msg = (
            f"{len(absent)} of the {len(fit.genes)} genes of the fit are missing from adata.var_names (for example {example}). "
            + _other_names(adata, fit)
        )
        raise ValueError(msg)
    if n_shared < max(1, MIN_SHARE * n_modelled):
        msg = (
            f"{len(modelled)} of the {n_modelled} modelled genes are missing from adata.var_names (for example {example}); "
            f"at least {MIN_SHARE:.0%} are needed. Pass the full matrix, with the annotation of the fit, or fit again on the "
            "shared genes: vx.tl.fit_vae(reference[:, reference.var_names.isin(query.var_names)].copy())."
        )
        raise ValueError(msg)
    if len(modelled):
        logg.warning(
            f"{len(modelled)} of the {n_modelled} modelled genes are missing from adata.var_names (for example {example}). "
            "They are treated as not measured, not as zeros."
        )
    else:
        logg.info(f"    {len(absent)} genes outside the model are missing from adata.var_names")


def _warn_new_categories(fit: Fit, added: tuple[tuple[str, ...], ...], *, train: bool) -> None:
    treated = (
        "Their weights are trained on these cells" if train else "They are treated as the average of the known ones"
    )
    for (key, names), more in zip(fit.covariates.categorical, added, strict=True):
        if more:
            shown = ", ".join(map(repr, more[:5])) + (", ..." if len(more) > 5 else "")
            logg.warning(
                f"obs[{key!r}] holds {len(more)} categor{'y' if len(more) == 1 else 'ies'} that the fit has not seen ({shown}; it "
                f"knows {', '.join(map(repr, names[:5]))}{', ...' if len(names) > 5 else ''}). {treated}."
            )
