"""Features from which labels are predicted: of the latent position of a cell, and of its counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vxpress.core.priors.components import k_means

# landmarks, and the number of cells needed for each
MAX_LANDMARKS, CELLS_EACH = 50, 10
# cells from which landmarks and expected expression are learned
MAX_CELLS = 10_000
# weight of the similarity to a landmark against a standardised coordinate of z
SIMILARITY = 3.0
# molecules per cell to which expression is scaled
SCALE = 1e4
# the least spread, of a coordinate that all cells share
MIN_SPREAD = 1e-6
# ridge penalty of the regression on which expected expression rests, in cells
PENALTY = 1.0


@dataclass(frozen=True)
class LatentFeatures:
    """Coordinates of z, standardised, and the similarity to landmarks among the cells, labelled or not.

    Labels often are not separated by planes in the latent space: similarities exp(-r^2 / (2 width^2)) make the classifier
    follow the clusters of all cells. The landmarks are k-means centres, the width is the median distance to the nearest one.
    """

    centre_d: Tensor
    spread_d: Tensor
    landmark_kd: Tensor
    width: float

    @classmethod
    def of(cls, z_nd: Tensor, generator: torch.Generator) -> LatentFeatures:
        """Learn centre, spread and landmarks from cells."""
        z_nd = _some(z_nd, generator)
        centre_d, spread_d = z_nd.mean(0), z_nd.std(0, correction=0).clamp_min(MIN_SPREAD)
        # one scale for all dimensions, in which distances are those of z
        scale = float(z_nd.var(0, correction=0).mean().sqrt().clamp_min(MIN_SPREAD))
        n_landmarks = max(1, min(MAX_LANDMARKS, len(z_nd) // CELLS_EACH))
        landmark_kd, _ = k_means(z_nd, n_landmarks, generator)
        nearest_n = torch.cdist(z_nd, landmark_kd).min(-1).values
        return cls(centre_d, spread_d, landmark_kd, max(float(nearest_n.median()), MIN_SPREAD * scale))

    def __call__(self, z_nd: Tensor) -> Tensor:
        """Compute the features, (n, d + landmarks)."""
        similarity_nk = (-0.5 * (torch.cdist(z_nd, self.landmark_kd) / self.width).square()).exp()
        return torch.cat(((z_nd - self.centre_d) / self.spread_d, SIMILARITY * similarity_nk), dim=-1)


def log_expression(x_ng: Tensor, library_n: Tensor) -> Tensor:
    """Compute log1p(1e4 x / l), (n, genes); a cell without molecules has zeros."""
    return (x_ng * (SCALE / library_n.clamp_min(1e-12))[:, None]).log1p()


def expected_expression(latent_nf: Tensor, expression_ng: Tensor) -> Tensor:
    """Regress expression on latent features, with a ridge penalty: weights (1 + features, genes), the intercept first.

    They give the expected expression of genes that were not measured in other cells.
    """
    design = torch.cat((torch.ones(len(latent_nf), 1), latent_nf), dim=-1).double()
    gram = design.t() @ design + PENALTY * torch.eye(design.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, design.t() @ expression_ng.double()).float()


def some_rows(n: int, most: int, generator: torch.Generator) -> Tensor:
    """Return at most ``most`` of n row numbers, drawn at random, in order."""
    return torch.arange(n) if n <= most else torch.randperm(n, generator=generator)[:most].sort().values


def _some(z_nd: Tensor, generator: torch.Generator) -> Tensor:
    return z_nd[some_rows(len(z_nd), MAX_CELLS, generator)]


def balanced(code_n: Tensor) -> Tensor:
    """Return a weight for each labelled cell: one over the root of the number of cells with its label, mean 1.

    Rare labels then count more than their share, and common ones still more than rare ones.
    """
    weight_n = torch.bincount(code_n).double().rsqrt()[code_n].float()
    return weight_n / weight_n.mean()


def floor(log_prob: Tensor, lowest: float = math.log(1e-5)) -> Tensor:
    """Return log probabilities that are nowhere below ``lowest``, so that no single error decides an average."""
    return log_prob.clamp_min(lowest)
