"""Example data: real counts without a download, and simulated counts with known truth."""

from __future__ import annotations

from vxpress.datasets._pbmc68k_reduced import pbmc68k_reduced
from vxpress.datasets._pbmc_batches import pbmc_batches
from vxpress.datasets._simulate import simulate
from vxpress.datasets._simulate_perturbation import simulate_perturbation

__all__ = ["pbmc68k_reduced", "pbmc_batches", "simulate", "simulate_perturbation"]
