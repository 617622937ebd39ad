"""Predict by a map of the latent space from control to treated cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from vxpress.bridge.ask.perturbation.base import Method, Moved, covariates_of
from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.core.blocks import Z
from vxpress.core.extension.trial import try_map
from vxpress.core.inference.posterior import Encoded
from vxpress.core.maps import MAPS, LatentMap


class ByLatentMap(Method):
    """A map that is learned from the positions of control and treated cells; the name of the method is that of the map."""

    name: ClassVar[str]
    in_latent_space = True

    def __init__(self, options: Any, seed: int) -> None:
        super().__init__(options, seed)
        self._learned: dict[tuple[int, ...], LatentMap] = {}

    @classmethod
    def named(cls, name: str) -> type[ByLatentMap]:
        """Return the method of a registered map."""
        own = {"name": name, "Options": MAPS[name].Options, "costly": MAPS[name].costly}
        return type(f"By_{name}", (cls,), own)

    @classmethod
    def wants_kept(cls, fit: Any, perturbation_key: str) -> bool:
        optional = [fit.covariates.categorical[k][0] for k in fit.params.model.optional]
        if perturbation_key in optional:
            return True
        if perturbation_key in [key for key, _ in fit.covariates.categorical]:
            msg = (
                f"method={cls.name!r} moves cells in the latent space, but {perturbation_key!r} is a covariate of the fit, so that its effect "
                "is not in the latent space. Use method='counterfactual', or fit with the effect kept: "
                f"vx.tl.fit_vae(adata, optional_covariate_keys=[{perturbation_key!r}]), or without this covariate."
            )
            raise ValueError(msg)
        table = fit.covariates.perturbations
        if table is not None and table.key == perturbation_key:
            msg = (
                f"method={cls.name!r} moves cells in the latent space, but the fit has the effects of obs[{perturbation_key!r}] as embeddings, which are "
                "removed from it. Use method='additive', or fit without perturbation_key=."
            )
            raise ValueError(msg)
        return False

    def predict(self, cells: PerturbedCells, rows: np.ndarray, group: int, learn_from: Sequence[int]) -> Moved:
        moves = self._map(cells, tuple(learn_from))
        start = cells.encoded[rows]
        group_n = torch.full((len(rows),), group, dtype=torch.int64)
        z_nd = moves(torch.from_numpy(start.mean_nd.astype(np.float64)), group_n).numpy().astype(np.float32)
        return Moved(Encoded(start.mean | {Z: z_nd}, start.var), covariates_of(cells, rows))

    def _map(self, cells: PerturbedCells, learn_from: tuple[int, ...]) -> LatentMap:
        """Return the map that is learned from the treated cells of some groups."""
        if learn_from not in self._learned:
            populations = cells.populations
            controls = populations.controls()
            treated = np.concatenate([populations.treated(group) for group in learn_from])
            source, target = (
                torch.from_numpy(cells.encoded.mean_nd[rows].astype(np.float64)) for rows in (controls, treated)
            )
            source_group, target_group = (torch.from_numpy(populations.group_n[rows]) for rows in (controls, treated))
            made: LatentMap = MAPS[self.name](self.options)
            try_map(self.name, made, source.shape[1])
            made.fit(source, target, source_group, target_group, torch.Generator().manual_seed(self.seed))
            self._learned[learn_from] = made
        return self._learned[learn_from]
