"""Rank genes in the layout of scanpy: one record array per statistic, one field per group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import false_discovery_control

from vxpress.core.inference.differential import Comparison

DTYPES = {"names": "O", "scores": "float32", "logfoldchanges": "float32", "pvals": "float64", "pvals_adj": "float64"}


def layout(genes: np.ndarray, comparisons: Mapping[str, Comparison], n_genes: int | None) -> dict[str, np.ndarray]:
    """Build one record array per statistic, with one field per group, best first."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in DTYPES}
    for found in comparisons.values():
        order = np.lexsort((-found.lfc_g, -found.score_g))[:n_genes]
        values = (genes, found.score_g, found.lfc_g, found.pval_g, false_discovery_control(found.pval_g))
        for name, value in zip(DTYPES, values, strict=True):
            columns[name].append(value[order])
    return {
        name: np.rec.fromarrays(columns[name], dtype=[(group, dtype) for group in comparisons])
        for name, dtype in DTYPES.items()
    }
