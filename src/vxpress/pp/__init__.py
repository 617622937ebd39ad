"""Preprocessing: library size and highly variable genes before a fit, the neighborhood graph after it."""

from __future__ import annotations

from vxpress.pp._gene_panels import gene_panels
from vxpress.pp._highly_variable_genes import highly_variable_genes
from vxpress.pp._library_size import library_size
from vxpress.pp._neighbors import neighbors

__all__ = ["gene_panels", "highly_variable_genes", "library_size", "neighbors"]
