"""Composition effects: shares of molecules sum to one, so a gain of a few genes is a loss of all others.

This module measures the effect and removes it from a comparison (Robinson & Oshlack, A scaling normalization method for
differential expression analysis of RNA-seq data, Genome Biology 2010).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vxpress.core.inference.differential import Contrast, Evidence, Floats, Ints

# largest number of genes that count as few, and their largest share of all genes
FEW, FEW_SHARE = 10, 0.02
# least number of molecules of a gene, in both sets together, for a reliable fold change; least number of genes for a
# median
MIN_MOLECULES, MIN_GENES = 50, 20


@dataclass(frozen=True)
class Displacement:
    """Shift of all other genes' log2 fold change that few genes cause, these genes, and their share on both sides."""

    log2: float
    gene_k: Ints
    share_up: float
    share_down: float


def displacement(evidence: Evidence, contrast: Contrast) -> Displacement:
    """Compute how the few genes whose shares differ most shift the others, which share the rest of the molecules."""
    up_g, down_g = _rates(evidence, contrast)
    n_few = max(1, min(FEW, int(FEW_SHARE * len(up_g))))
    gene_k = np.argsort(-np.abs(up_g - down_g), kind="stable")[:n_few].astype(np.int64)
    up, down = (min(float(rate_g[gene_k].sum()), 0.999) for rate_g in (up_g, down_g))
    return Displacement(float(np.log2((1 - up) / (1 - down))), gene_k, up, down)


def typical_log2_fold(evidence: Evidence, contrast: Contrast, genes: Ints | None = None) -> float:
    """Compute the log2 fold change that counts as zero.

    It is that of ``genes`` together, or the median over genes with enough molecules; NaN if it cannot be computed.
    """
    up_g, down_g = _rates(evidence, contrast)
    if genes is not None:
        up, down = float(up_g[genes].sum()), float(down_g[genes].sum())
        return float(np.log2(up / down)) if up > 0 and down > 0 else float("nan")
    counts_g = evidence.counts_mg[contrast.unit_m].sum(0)
    enough = (up_g > 0) & (down_g > 0) & (counts_g >= MIN_MOLECULES)
    return float(np.median(np.log2(up_g[enough] / down_g[enough]))) if enough.sum() >= MIN_GENES else float("nan")


def relative(evidence: Evidence, contrast: Contrast, log2_fold: float) -> Evidence:
    """Multiply the exposure of the first side by a fold change, so that this fold change counts as zero."""
    exposure_mg = evidence.exposure_mg.copy()
    exposure_mg[contrast.unit_m[contrast.up_m]] *= 2.0**log2_fold
    return Evidence(evidence.units, evidence.counts_mg, exposure_mg, evidence.variance_mg, evidence.floor_g)


def _rates(evidence: Evidence, contrast: Contrast) -> tuple[Floats, Floats]:
    """Compute molecules per unit of exposure on both sides, averaged over strata with the weights of a comparison."""
    m, up, stratum = contrast.unit_m, contrast.up_m, contrast.stratum_m
    n = int(stratum.max()) + 1
    sums = np.zeros((2, 2, n, evidence.counts_mg.shape[1]))
    cells = np.zeros((2, n))
    for side, which in enumerate((up, ~up)):
        np.add.at(sums[side, 0], stratum[which], evidence.counts_mg[m[which]])
        np.add.at(sums[side, 1], stratum[which], evidence.exposure_mg[m[which]])
        np.add.at(cells[side], stratum[which], evidence.units.n_m[m[which]])
    # a stratum counts for the genes that both sides measured
    measured = (sums[:, 1] > 0).all(0)
    weight = (cells[0] * cells[1] / cells.sum(0))[:, None] * measured
    rates = sums[:, 0] / np.where(measured, sums[:, 1], 1.0)
    found = (rates * (weight / np.maximum(weight.sum(0), 1e-300))).sum(1)
    return found[0], found[1]
