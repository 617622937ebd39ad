"""Compare groups of cells of an AnnData by their counts and the expectation of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from anndata import AnnData
from scanpy import logging as logg
from scipy import sparse

from vxpress.bridge.ask.composition import LIBRARY, reference_genes, shift_of, warn_composition
from vxpress.bridge.ask.groups import Groups
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.stored_cells import StoredCells, library_of
from vxpress.bridge.read.columns import get_categories
from vxpress.bridge.read.matrix import canonical, count_blocks, row_blocks
from vxpress.core.inference.composition import displacement, relative
from vxpress.core.inference.differential import (
    Comparison,
    Contrast,
    Evidence,
    Floats,
    Ints,
    Prior,
    Tally,
    Units,
    Weights,
    compare,
    expected_evidence,
)
from vxpress.core.inference.foreground import foreground_counts, has_background
from vxpress.core.inference.group_expression import GroupExpression, count_overdispersion, decode_units, subsample
from vxpress.core.progress import steps

BLOCK_COUNTS = 4_000_000
Change: TypeAlias = Callable[[slice, sparse.csr_matrix], sparse.csr_matrix]


def category_codes(adata: AnnData, key: str | None) -> Ints:
    """Return the codes of a column of ``obs``; zeros if ``key`` is None."""
    if key is None:
        return np.zeros(adata.n_obs, dtype=np.int64)
    return get_categories(adata.obs, key).code_n


@dataclass(frozen=True)
class Expected:
    """The model's expectation for groups: mean expression, variance of its log, overdispersion of counts, and batch shift.

    The shift is the ratio of the expression in the cells' own batches to the average over all batches.
    """

    mean_kg: Floats
    log_variance_kg: Floats
    alpha_g: Floats
    shift_kg: Floats | None


def expected_expression(
    cells: StoredCells,
    groups: Groups,
    genes: np.ndarray,
    *,
    n_cells: int,
    n_draws: int,
    with_shift: bool,
    rng: np.random.Generator,
) -> Expected:
    """Decode at most ``n_cells`` randomly chosen cells of each group, ``n_draws`` times each."""
    fit = cells.fit
    chosen = subsample(groups.code_n, n_cells, rng)
    encoded, covariates, code = cells.encoded[chosen], cells.covariates[torch.from_numpy(chosen)], groups.code_n[chosen]
    known = fit.covariates.batch_codes(None)
    batches = tuple(rng.permutation(known).tolist()) if known else (None,)
    seeds = rng.integers(2**62, size=(2, n_draws))

    def decode(under: tuple[int | None, ...], which: int) -> GroupExpression:
        found = decode_units(
            fit.model,
            encoded,
            covariates,
            code,
            len(groups.names),
            batches=under,
            n_draws=n_draws,
            seeds=seeds[which],
        )
        return GroupExpression(*(_place(part, fit)[:, genes] for part in (found.mean_mg, found.variance_mg)))

    shared = decode(batches, 0)
    weight_k1 = np.bincount(code, minlength=len(groups.names))[:, None]
    between_g = (weight_k1 * shared.variance_mg).sum(0) / np.maximum((weight_k1 * shared.mean_mg**2).sum(0), 1e-300)
    inside_g = count_overdispersion(fit.model, encoded, covariates)
    all_g = np.full(len(fit.genes), float(np.median(inside_g)))
    all_g[fit.modelled_g] = inside_g
    # a group of few cells does not show how much cells differ; all groups together do
    spread_kg = np.maximum(shared.variance_mg / np.maximum(shared.mean_mg, 1e-12) ** 2, between_g)
    shift = decode((None,), 1).mean_mg / shared.mean_mg if with_shift and known else None
    mean_kg = np.maximum(shared.mean_mg, 1e-12)
    return Expected(mean_kg, spread_kg / np.maximum(weight_k1, 1), between_g + all_g[genes], shift)


def _place(value_kg: Floats, fit: Fit) -> Floats:
    """Put columns in the order of the genes of the fit; in ``value_kg``, genes read out follow the modelled genes."""
    out = np.full((len(value_kg), len(fit.genes)), np.nan)
    n_inside = int(fit.modelled_g.sum())
    out[:, fit.modelled_g] = value_kg[:, :n_inside]
    if value_kg.shape[1] > n_inside:
        out[:, ~fit.modelled_g] = value_kg[:, n_inside:]
    return out


def tally_counts(
    adata: AnnData,
    layer: str | None,
    genes: np.ndarray,
    *,
    units: Units,
    weights: Weights,
    library_n: Floats,
    change: Change | None = None,
) -> Evidence:
    """Add up the counts of ``genes``, columns of ``adata``, in blocks of cells; raises ``ValueError`` if they are not counts.

    With ``change``, its values of a block of cells are added in place of the counts.
    """
    column = np.full(adata.n_vars, -1, dtype=np.int64)
    column[genes] = np.arange(len(genes))
    tally = Tally(units, weights, len(genes))
    for rows, counts in count_blocks(adata, layer, _blocks):
        block = counts if change is None else change(rows, counts)
        row_k = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        tally.add(rows, row_k, column[block.indices], block.data.astype(np.float64), library_n)
    return tally.evidence()


def _without_background(cells: StoredCells, position: np.ndarray) -> Change:
    """Return a function that removes the background from counts; ``position`` are the columns of the features of the fit."""

    def change(rows: slice, block: sparse.csr_matrix) -> sparse.csr_matrix:
        # values of features that adata lacks are not read
        counts_nf = np.where(position >= 0, block[:, np.maximum(position, 0)].toarray(), 0)
        here = torch.arange(rows.start, rows.stop)
        found = foreground_counts(cells.fit.model, cells.encoded[rows], cells.covariates[here], counts_nf)
        there = np.flatnonzero(position >= 0)
        out = np.zeros(block.shape)
        out[:, position[there]] = found[:, there]
        return sparse.csr_matrix(out)

    return change


def _blocks(matrix: object) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    if not sparse.issparse(matrix):
        yield from row_blocks(matrix)
        return
    whole = canonical(matrix)
    step = max(1, int(BLOCK_COUNTS * whole.shape[0] / max(1, whole.nnz)))
    for start in range(0, whole.shape[0], step):
        rows = slice(start, min(start + step, whole.shape[0]))
        yield rows, whole[rows]


@dataclass(frozen=True)
class Question:
    """The groups to compare, the log2 fold change to exceed, and the columns of batch and sample."""

    groups: Groups
    delta: float
    n_cells: int
    n_draws: int
    batch_key: str | None
    sample_key: str | None
    relative_to: str | tuple[str, ...] = LIBRARY


@dataclass(frozen=True)
class Answer:
    """Names of the ranked genes, and for every tested group its comparison and the fold change that counts as no change.

    ``counts`` is True if counts were used.
    """

    genes: np.ndarray
    comparisons: Mapping[str, Comparison]
    shifts: Mapping[str, float]
    counts: bool


def ask(
    adata: AnnData,
    cells: StoredCells,
    question: Question,
    *,
    layer: str | None,
    use_counts: bool | None,
    rng: np.random.Generator,
) -> Answer:
    """Decode, read the counts if they are available, and compare."""
    groups, fit = question.groups, cells.fit
    library_n = library_of(adata, cells)
    background = has_background(fit.model.decoder.likelihood)
    position, genes = _genes(adata, fit)
    batch_n = category_codes(adata, question.batch_key)
    sample_n = batch_n if question.sample_key is None else category_codes(adata, question.sample_key)
    panels = MeasuredGenes.of(cells, genes)
    stratum_n = batch_n if panels is None else panels.within(batch_n)
    units = Units.of(np.where(library_n > 0, groups.code_n, -1), stratum_n, sample_n)
    contrasts = {groups.names[group]: _contrast(units, groups, group) for group in groups.tested}
    _warn(units, question, contrasts, None if panels is None else panels.key)
    expected = expected_expression(
        cells,
        groups,
        genes,
        n_cells=question.n_cells,
        n_draws=question.n_draws,
        with_shift=question.batch_key is not None and any(contrast.confounded for contrast in contrasts.values()),
        rng=rng,
    )
    rate_g = (units.n_m @ expected.mean_kg[units.group_m]) / units.n_m.sum()
    weights = Weights.of(library_n, units, expected.alpha_g, rate_g)
    evidence = None
    if use_counts is not False:
        evidence = _read_evidence(
            adata,
            layer,
            position[genes],
            insist=use_counts is True,
            units=units,
            weights=weights,
            library_n=library_n,
            change=_without_background(cells, position) if background else None,
        )
    counted = evidence is not None
    if evidence is None:
        evidence = expected_evidence(units, weights, expected.mean_kg[units.group_m], expected.alpha_g)
    # the model expects counts of all genes
    seen = panels.evidence(evidence, expected.mean_kg) if panels is not None and counted else evidence
    reference = reference_genes(question.relative_to, fit.genes[genes])
    comparisons, shifts, displaced = {}, {}, {}
    for name, contrast in steps(contrasts.items(), "comparing groups"):
        here = seen
        if contrast.confounded and counted and expected.shift_kg is not None:
            # convert exposures to shared batches: only the model separates batch from group here
            here = replace(seen, exposure_mg=seen.exposure_mg * expected.shift_kg[units.group_m])
        by_sample = question.sample_key is not None or (contrast.confounded and contrast.sample_df(units) >= 1)
        prior = _prior(evidence, expected, contrast)
        shifts[name] = shift_of(question.relative_to, reference, here, contrast, name)
        if question.relative_to == LIBRARY and not background:
            displaced[name] = displacement(here, contrast)
        elif question.relative_to != LIBRARY:
            here = relative(here, contrast, shifts[name])
            prior = replace(prior, up_g=prior.up_g / 2.0 ** shifts[name])
        comparisons[name] = compare(here, contrast, prior, delta=question.delta, by_sample=by_sample)
    warn_composition(displaced, fit.genes[genes], question.delta)
    return Answer(fit.genes[genes], comparisons, shifts, counted)


@dataclass(frozen=True)
class MeasuredGenes:
    """The gene panel of each cell, and which of the ranked genes each panel measured, bool (p, g).

    ``counted_pg`` are the genes whose molecules the size factors of its cells count.
    """

    key: str
    panel_n: Ints
    measured_pg: np.ndarray
    counted_pg: np.ndarray

    @classmethod
    def of(cls, cells: StoredCells, genes: np.ndarray) -> MeasuredGenes | None:
        """Return the panels of a fit, None if it has none."""
        table, panel_n = cells.fit.covariates.panels, cells.covariates.panel_n
        if table is None or panel_n is None:
            return None
        modelled_g, params = cells.fit.modelled_g, cells.fit.params
        measured_pg, counted_pg = np.ones((2, len(table.names), len(modelled_g)), dtype=bool)
        measured_pg[:, modelled_g], measured_pg[:, ~modelled_g] = table.measured_pg, table.outside_pg
        counted_pg[:, modelled_g] = table.measured_pg
        counted_pg[:, ~modelled_g] = table.common_g > 0 if params.model.remainder else False
        return cls(table.key, panel_n.cpu().numpy(), measured_pg[:, genes], counted_pg[:, genes])

    def within(self, batch_n: Ints) -> Ints:
        """Return the code of batch and panel of each cell: counts are compared among cells that measured the same genes."""
        return batch_n * len(self.measured_pg) + self.panel_n

    def evidence(self, evidence: Evidence, mean_kg: Floats) -> Evidence:
        """Return evidence without the genes that its units did not measure; ``mean_kg`` are the shares expected in each group."""
        units = evidence.units
        panel_m, mean_mg = units.stratum_m % len(self.measured_pg), mean_kg[units.group_m]
        coverage_m = 1.0 - np.where(self.counted_pg[panel_m], 0.0, mean_mg).sum(1)
        return evidence.where_measured(self.measured_pg[panel_m], coverage_m)


def _genes(adata: AnnData, fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Return the column of every gene of the fit in ``adata`` (-1: absent), and the ranked genes, in the order of ``adata``."""
    likelihood = fit.model.decoder.likelihood
    if not (likelihood.output.scalable or has_background(likelihood)):
        msg = (
            f"The likelihood of the fit is {fit.params.model.likelihood!r}: it predicts {likelihood.observes}, but groups are "
            "compared by expected counts. Fit with likelihood='nb'."
        )
        raise ValueError(msg)
    position = np.asarray(adata.var_names.get_indexer(fit.genes))
    decoded = fit.modelled_g | (fit.params.model.n_readout > 0)
    genes = np.flatnonzero((position >= 0) & decoded)
    if len(genes) == 0:
        msg = f"None of the {len(fit.genes)} genes of the fit (for example {fit.genes[0]!r}) is in adata.var_names (for example {adata.var_names[0]!r})."
        raise ValueError(msg)
    if len(genes) < adata.n_vars:
        logg.warning(
            f"{adata.n_vars - len(genes)} gene(s) of adata are unknown to the fit, or not read out by it, and are not ranked."
        )
    return position, genes[np.argsort(position[genes])]


def _contrast(units: Units, groups: Groups, group: int) -> Contrast:
    for code in (group, groups.reference):
        if code is not None and not (units.group_m == code).any():
            msg = f"Group {groups.names[code]!r} has no cell with a size factor above 0. Remove empty cells: sc.pp.filter_cells(adata, min_counts=1)."
            raise ValueError(msg)
    return Contrast.of(units, group, groups.reference)


def _warn(units: Units, question: Question, contrasts: Mapping[str, Contrast], panel_key: str | None) -> None:
    names = question.groups.names
    small = [name for name in contrasts if units.n_m[units.group_m == names.index(name)].sum() < 3]
    if small:
        logg.warning(f"Fewer than 3 cells are in {small}: their results are mostly the model's expectation.")
    confounded = [name for name, contrast in contrasts.items() if contrast.confounded]
    if confounded and panel_key is not None:
        logg.warning(
            f"{confounded} share no batch with the same gene panel (obs[{panel_key!r}]) with the cells they are compared with. Genes "
            "that one side did not measure are compared by the model's expectation alone."
        )
    if confounded and question.batch_key is not None:
        logg.warning(
            f"{confounded} share no batch (obs[{question.batch_key!r}]) with the cells they are compared with. The comparison uses "
            "the model's batch correction, which cannot distinguish a batch effect from a difference between groups. "
            "batch_key=None compares without correction."
        )
    if question.sample_key is not None:
        alone = [name for name, contrast in contrasts.items() if contrast.sample_df(units) < 1]
        if alone:
            logg.warning(
                f"{alone} and the cells they are compared with come from too few samples (obs[{question.sample_key!r}]) to "
                "estimate how samples differ: their p-values use one degree of freedom."
            )


def _read_evidence(
    adata: AnnData, layer: str | None, columns: np.ndarray, *, insist: bool, **sums: Any
) -> Evidence | None:
    try:
        return tally_counts(adata, layer, columns, **sums)
    except (ValueError, KeyError) as error:
        if insist:
            raise
        logg.warning(
            f"No counts were found: {error.args[0]}\nGroups are compared by the model's expectation alone, which finds fewer "
            "differences. Pass use_counts=False if this is intended."
        )
        return None


def _prior(evidence: Evidence, expected: Expected, contrast: Contrast) -> Prior:
    """Compute the model's expectation for the cells that are compared."""
    means, variances = [], []
    for side in (contrast.up_m, ~contrast.up_m):
        unit_m = contrast.unit_m[side]
        group_m, inside = np.unique(evidence.units.group_m[unit_m], return_inverse=True)
        exposure_kg = np.zeros((len(group_m), evidence.exposure_mg.shape[1]))
        np.add.at(exposure_kg, inside.reshape(-1), evidence.exposure_mg[unit_m])
        part_kg = exposure_kg * expected.mean_kg[group_m]
        means.append(part_kg.sum(0) / exposure_kg.sum(0))
        variances.append(((part_kg / part_kg.sum(0)) ** 2 * expected.log_variance_kg[group_m]).sum(0))
    return Prior(means[0], means[1], variances[0] + variances[1])
