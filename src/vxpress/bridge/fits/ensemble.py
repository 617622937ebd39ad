"""Several fits of the same cells from different seeds: how they are fitted, and what they write.

A single fit places cells partly by chance: fits from two seeds agree on some of the nearest neighbours of a cell only. They
agree on more of them if the posterior means of several fits are taken side by side. The first fit remains the model that all
other calls use; the further ones encode cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._keys import Keys
from vxpress.bridge.fits.results import Results
from vxpress.bridge.fits.runner import Fitted, Runner
from vxpress.bridge.fits.stored_cells import StoredCells, stored_ensemble
from vxpress.core.inference.posterior import Encoded, Views
from vxpress.core.isolation import after_interrupt
from vxpress.core.model import VAE
from vxpress.core.progress import stage
from vxpress.core.training import TrainingError


@contextmanager
def fit_stage(number: int, n_fits: int) -> Iterator[None]:
    """Name one of several fits in the progress bar; ``number`` counts from 0."""
    with stage(f"fit {number + 1} of {n_fits}") if n_fits > 1 else nullcontext():
        yield


def further_fits(runner: Runner, first: Fitted, n_fits: int) -> list[Fitted]:
    """Fit ``n_fits`` - 1 further models with the settings of ``first``, one after the other, and move them to the CPU.

    They have no readout, which only decodes, and the dispersions of ``first``, which were refitted. An interrupt ends the
    fitting, and a model that cannot be trained is left out: the models that are done are kept, with a warning.
    """
    if first.outcome.interrupted:
        return []
    config, train = replace(first.model.config, n_readout=0), replace(first.train, refit_dispersion=False)
    done: list[Fitted] = []
    for number in range(1, n_fits):
        try:
            with fit_stage(number, n_fits):
                fitted = runner.fit(config, train, number)
            if fitted.outcome.interrupted:
                raise KeyboardInterrupt
            _share_dispersions(first.model, fitted.model.cpu())
            done.append(fitted)
        except KeyboardInterrupt:
            after_interrupt()
            logg.warning(f"Interrupted during fit {number + 1} of {n_fits}: {_kept(len(done) + 1)}")
            break
        except TrainingError as error:
            logg.warning(f"Fit {number + 1} of {n_fits} is left out: {error}")
    return done


def _share_dispersions(first: VAE, further: VAE) -> None:
    """Give a further model the dispersions of the first, unless they depend on the latent state."""
    names = [name for name, _ in first.named_parameters() if name == "decoder.log_dispersion"]
    further.load_state_dict({name: first.get_parameter(name).detach() for name in names}, strict=False)


def _kept(n: int) -> str:
    return f"the {n} complete fits are kept." if n > 1 else "the first fit is kept, without X_vae_ensemble."


def side_by_side(encoded: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
    """Return posterior means and variances of z of several models, float32 (n, models x d)."""
    return np.hstack([part.mean_nd for part in encoded]), np.hstack([part.var_nd for part in encoded])


def copy_ensemble(results: Results, adata: AnnData, stored: StoredCells, to: Keys) -> None:
    """Add the stored posteriors of several models under another name, if there are any."""
    fit = stored.fit
    for keys, target in ((stored.keys, to), (stored.keys.kept(), to.kept())):
        if fit.members and keys.of_ensemble()[0] in adata.obsm:
            results.obsm.update(zip(target.of_ensemble(), stored_ensemble(adata, fit, keys), strict=True))


def add_ensemble(results: Results, keys: Keys, views: Sequence[Views]) -> None:
    """Add the posteriors of several models in each view; a single one has none."""
    for to, parts in ((keys, [removed for removed, _ in views]), (keys.kept(), [kept for _, kept in views])):
        found = [part for part in parts if part is not None]
        if len(found) > 1:
            results.obsm.update(zip(to.of_ensemble(), side_by_side(found), strict=True))
