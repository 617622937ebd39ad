"""Paths between two points of the latent space.  A new path is one class, registered in :data:`PATHS` under its name."""

from __future__ import annotations

import copy

import numpy as np
import torch

from vxpress.core import registry
from vxpress.core.priors import Prior

_PARALLEL = 1e-6


class Path:
    """A path from one point of the latent space to another.

    ``prior`` is that of the fit, and ``condition`` names the column that it depends on, if any.
    """

    def __init__(self, prior: Prior, condition: str | None = None) -> None:
        self.prior, self.condition = prior, condition

    def points(self, start_d: np.ndarray, end_d: np.ndarray, position_s: np.ndarray) -> np.ndarray:
        """Compute the points of the path, (s, d); ``position_s`` runs from 0 to 1.

        Raises ``ValueError`` if there is no such path.
        """
        raise NotImplementedError


class LinearPath(Path):
    """The straight line."""

    def points(self, start_d: np.ndarray, end_d: np.ndarray, position_s: np.ndarray) -> np.ndarray:
        return linear_path(start_d, end_d, position_s)


class SphericalPath(Path):
    """The arc around the origin on which angle and norm change evenly."""

    def points(self, start_d: np.ndarray, end_d: np.ndarray, position_s: np.ndarray) -> np.ndarray:
        return spherical_path(start_d, end_d, position_s)


class FlowPath(Path):
    """The straight line in the base space of a learned flow, mapped back."""

    def points(self, start_d: np.ndarray, end_d: np.ndarray, position_s: np.ndarray) -> np.ndarray:
        prior = self.prior
        if not prior.invertible or prior.config.n_conditions:
            kind = f"{prior.config.name!r}" + (f" given {self.condition!r}" if prior.config.n_conditions else "")
            msg = (
                f"method='flow' needs a prior that maps the latent space to N(0, I) and back; the prior of this fit is {kind}. Learn a "
                "flow: vx.tl.fit_prior(adata, prior='flow')."
            )
            raise ValueError(msg)
        # in single precision the ends would be recovered to three digits only
        prior = copy.deepcopy(prior).double()
        base = prior.to_base(torch.from_numpy(np.stack([start_d, end_d]))).numpy()
        path_sd: np.ndarray = prior.from_base(torch.from_numpy(linear_path(base[0], base[1], position_s))).numpy()
        if not np.allclose(path_sd[[0, -1]], [start_d, end_d], atol=1e-3):
            msg = "The learned flow cannot be inverted at the ends of the path. Learn it again: vx.tl.fit_prior(adata, prior='flow')."
            raise ValueError(msg)
        return path_sd


def linear_path(start_d: np.ndarray, end_d: np.ndarray, position_s: np.ndarray) -> np.ndarray:
    """Compute points on the straight line, (s, d); ``position_s`` runs from 0 to 1."""
    t = np.asarray(position_s)[:, None]
    return np.asarray((1.0 - t) * start_d + t * end_d)


def spherical_path(start_d: np.ndarray, end_d: np.ndarray, position_s: np.ndarray) -> np.ndarray:
    """Compute points on an arc around the origin, (s, d): angle and norm change linearly (Shoemake 1985).

    A straight line between two draws of N(0, I) passes closer to the origin than both draws; the arc does not.
    """
    norms = np.linalg.norm(start_d), np.linalg.norm(end_d)
    if min(norms) == 0.0:
        msg = "method='spherical' turns around the origin, but one end is at the origin. Use method='linear'."
        raise ValueError(msg)
    cosine = float(np.clip(start_d @ end_d / (norms[0] * norms[1]), -1.0, 1.0))
    if cosine < -1.0 + _PARALLEL:
        msg = "method='spherical' is not defined for ends in opposite directions from the origin. Use method='linear'."
        raise ValueError(msg)
    angle = np.arccos(cosine)
    if angle < _PARALLEL:
        return linear_path(start_d, end_d, position_s)
    t = np.asarray(position_s)[:, None]
    direction = (np.sin((1.0 - t) * angle) * (start_d / norms[0]) + np.sin(t * angle) * (end_d / norms[1])) / np.sin(
        angle
    )
    return np.asarray(((1.0 - t) * norms[0] + t * norms[1]) * direction)


PATHS: registry.Registry[type[Path]] = registry.PATHS
PATHS.register("linear", LinearPath)
PATHS.register("spherical", SphericalPath)
PATHS.register("flow", FlowPath)
