"""Preparation of counts: library size and highly variable genes."""

from __future__ import annotations

from vxpress.pp._highly_variable_genes import highly_variable_genes
from vxpress.pp._library_size import library_size

__all__ = ["highly_variable_genes", "library_size"]
