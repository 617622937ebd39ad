"""Check the arguments of a prediction that concern the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vxpress.bridge.ask.perturbation.base import Method
from vxpress.bridge.ask.perturbation.methods import find_method
from vxpress.bridge.ask.perturbation.populations import Populations
from vxpress.bridge.fits.fit import Fit
from vxpress.core.option import check_offered


def make_method(name: object, given: Mapping[str, Any] | None, seed: int) -> Method:
    """Return the method of this name with the given options."""
    kind = find_method(name)
    given = {} if given is None else given
    check_offered(kind.Options, given, "method_options", f"method={name!r}")
    return kind(kind.Options(**given), seed)


def check_target(populations: Populations, method: Method, name: str) -> None:
    """Raise unless there are treated cells to learn from, if the method needs them."""
    if not method.needs_target or populations.learned_from:
        return
    key, target = populations.perturbation_key, populations.target
    if not populations.treated().size:
        more = ""
        if len(parts := populations.parts()) > 1:
            more = (
                f" For a combination, method='additive' (with fit_vae(perturbation_key={key!r})) and method='additive_mean' add the effects of "
                f"its parts {parts}."
            )
        msg = (
            f"target={target!r} is not in obs[{key!r}], which holds {list(populations.perturbations)}; method={name!r} learns "
            f"from cells with the target.{more}"
        )
        raise ValueError(msg)
    msg = (
        f"No group of obs[{populations.groupby!r}] has both control cells ({key} = {populations.control}) and cells with {key} = {target}, so "
        "that no change can be learned. Choose other groups, or groupby=None to compare all cells."
    )
    raise ValueError(msg)


def check_counts(fit: Fit) -> None:
    """Raise ``ValueError`` unless the fit describes counts."""
    likelihood = fit.model.decoder.likelihood
    if not (likelihood.discrete and likelihood.output.scalable and likelihood.observes == "counts"):
        msg = (
            f"The fit has likelihood={fit.params.model.likelihood!r}, which does not describe counts, and a prediction holds counts. "
            "Fit with likelihood='nb', 'zinb' or 'poisson'."
        )
        raise ValueError(msg)
