"""Judge the categorical covariates of a fit: what each is worth, and with what it is confounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from vxpress.bridge.health.verdict import MIN_STEPS
from vxpress.bridge.read.columns import get_categories, get_names
from vxpress.bridge.read.covariates import CovariateTable
from vxpress.core.data import Source
from vxpress.core.inference.association import determined
from vxpress.core.inference.covariate_worth import covariate_worth
from vxpress.core.model import VAE

# name of the record in the diagnosis, and its columns that need counts of held-out cells
NAME = "covariates"
FROM_HELD_OUT = ("worth", "low", "high", "p", "n_compared")
# a variable with this share of its information in a covariate counts as largely determined by it: a correction begins to remove
# its effect at about .5 and removes most of it at .9; see benchmarks/covariates.py
CONFOUNDED = 0.6
# p-value from which a covariate counts as worth nothing, and the number of cells that makes it likely to see an effect
NO_WORTH, MIN_COMPARED = 0.05, 50


def worth_of(model: VAE, cells: Source, held_out_n: np.ndarray, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Compute the columns :data:`FROM_HELD_OUT`, one value per covariate; empty without held-out cells."""
    if not len(held_out_n):
        return {}
    found = covariate_worth(model, cells, held_out_n, seed=seed)
    numbers = {name: np.array([getattr(one, name) for one in found]) for name in ("low", "high", "p")}
    return {
        "worth": np.array([one.mean for one in found]),
        **numbers,
        "n_compared": np.array([one.n_cells for one in found], dtype=np.int64),
    }


def kept_worth(known: Mapping[str, Any], table: CovariateTable) -> dict[str, np.ndarray]:
    """Return the columns :data:`FROM_HELD_OUT` of an earlier diagnosis of the same fit, if it has them."""
    record = known.get(NAME, {})
    same = list(record.get("name", ())) == [key for key, _ in table.categorical]
    return {name: record[name] for name in FROM_HELD_OUT if same and name in record}


def record_of(
    table: CovariateTable,
    obs: pd.DataFrame,
    worth: Mapping[str, np.ndarray],
    biology_keys: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the record of all categorical covariates, as columns; empty if there are none.

    The association of each with the others, with the labels and with ``biology_keys`` is a table of its own in the same
    record: ``association`` is the share of the information in ``associated`` that ``associated_by``, a covariate, holds.
    """
    if not table.categorical:
        return {}
    record = {
        "name": np.array([key for key, _ in table.categorical], dtype=object),
        "n_categories": np.array([len(names) for _, names in table.categorical], dtype=np.int64),
        **worth,
    }
    names = [key for key, _ in table.categorical]
    labels = [] if table.labels is None or table.labels[0] not in obs else [table.labels[0]]
    known = [*names, *(key for key in labels if key not in names)]
    new = [key for key in dict.fromkeys(biology_keys) if key not in known]
    pairs = [*permutations(names, 2), *((by, of) for by in names for of in [*known[len(names) :], *new])]
    if not pairs:
        return record
    codes = {key: get_names(obs, key, gaps=True).code_n for key in known}
    codes |= {key: get_categories(obs, key, argument="biology_keys", gaps=True).code_n for key in new}
    return record | {
        "associated_by": np.array([by for by, _ in pairs], dtype=object),
        "associated": np.array([of for _, of in pairs], dtype=object),
        "association": np.array([_determined(codes[of], codes[by]) for by, of in pairs]),
    }


def _determined(of_n: np.ndarray, by_n: np.ndarray) -> float:
    known = (of_n >= 0) & (by_n >= 0)
    return determined(of_n[known], by_n[known])


def warn_of_covariates(diagnosis: Mapping[str, Any], batch_key: str | None, *, n_steps: int) -> None:
    """Warn about covariates that are confounded with others or with biology, and about those that are worth nothing.

    The worth of a covariate in a fit of a few steps is not judged.
    """
    record = diagnosis.get(NAME, {})
    confounded = _confounded(record)
    for by, of, share in confounded:
        both = of in list(record["name"])
        logg.warning(_of_covariates(by, of, share) if both else _of_biology(by, of, share))
    if "worth" not in record or n_steps < MIN_STEPS:
        return
    redundant = {of for _, of, _ in confounded}
    columns = (record[name] for name in ("name", *FROM_HELD_OUT))
    for name, worth, low, high, p, n in zip(*columns, strict=True):
        if name not in redundant and n >= MIN_COMPARED and p >= NO_WORTH and low <= 0 <= high:
            where = "batch_key" if name == batch_key else "categorical_covariate_keys"
            # exactly 0 in every cell: the model does not receive it
            found = (
                "explains nothing: its categories differ no more than random groups of cells, and the model was fitted without it"
                if low == high == 0
                else f"explains nothing in held-out cells: {worth:+.2f} nats per cell ({low:+.2f} to {high:+.2f}), p = {p:.2g}"
            )
            others = [str(other) for other in record["name"] if other != name]
            logg.warning(f"{where}={str(name)!r} {found}. Leave it out: {_call(others, batch_key)}.")


def _call(names: Sequence[str], batch_key: str | None) -> str:
    """Return the call of a fit with these covariates."""
    further = [name for name in names if name != batch_key]
    batch = f", batch_key={batch_key!r}" if batch_key in names else ""
    return f"vx.tl.fit_vae(adata{batch}{f', categorical_covariate_keys={further}' if further else ''})"


def _confounded(record: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Return the covariate, the variable it determines and its share; of two that determine each other, one pair."""
    if "association" not in record:
        return []
    columns = (record[name] for name in ("associated_by", "associated", "association"))
    found = [(str(by), str(of), float(share)) for by, of, share in zip(*columns, strict=True) if share >= CONFOUNDED]
    first = {frozenset((by, of)): (by, of, share) for by, of, share in reversed(found)}
    return [pair for pair in found if first[frozenset(pair[:2])] == pair]


def _share(by: str, of: str, share: float) -> str:
    if share >= 1.0:
        return f"Every category of obs[{by!r}] has a single value of obs[{of!r}]"
    return f"obs[{by!r}] largely determines obs[{of!r}] ({share:.0%} of its information)"


def _of_covariates(by: str, of: str, share: float) -> str:
    return (
        f"{_share(by, of, share)}, so their effects cannot be told apart. Leave {of!r} out of the covariates; correcting for "
        f"{by!r} removes its effect too. To remove only that of {of!r}, leave {by!r} out."
    )


def _of_biology(by: str, of: str, share: float) -> str:
    return (
        f"{_share(by, of, share)}, so correcting for {by!r} also removes what {of!r} changes. To keep it, leave {by!r} out of the "
        "covariates, or correct for a coarser one."
    )
