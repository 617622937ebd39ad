"""Settings of ``fit_vae`` that benchmarks compare, by name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

import vxpress as vx
from vxpress.core.config import Preset
from vxpress.core.settings import resolve

# what fit_vae did in release 0.1.0, written out; 100 epochs for up to 1,843 training cells, which no benchmark that
# uses this exceeds
RELEASE_0_1: dict[str, Any] = {
    "n_latent": 10,
    "n_hidden": 128,
    "n_layers": 1,
    "likelihood": "nb",
    "prior": "normal",
    "objective": "elbo",
    "max_epochs": 100,
    "options": {
        "thinning": 0.0,
        "start": "mean",
        "screen_covariates": False,
        "dropout": 0.1,
        "norm": "batch",
        "encode_covariates": False,
        "condition_output": False,
        "covariate_code": "one-hot",
        "weight_decay": 1e-4,
        "refit_dispersion": True,
    },
}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    **{str(preset): {"preset": preset} for preset in get_args(Preset) if preset != "scvi"},
    "three fits": {"n_fits": 3},
    "0.1": RELEASE_0_1,
}


def available() -> dict[str, dict[str, Any]]:
    """Return the settings that this version of the package has."""
    known = inspect.signature(vx.tl.fit_vae).parameters
    return {name: given for name, given in SETTINGS.items() if all(argument in known for argument in given)}


def arguments(*given: Mapping[str, Any]) -> dict[str, Any]:
    """Combine settings, later ones replacing earlier ones, into arguments of ``fit_vae``."""
    options = {key: value for each in given for key, value in each.get("options", {}).items()}
    together = {key: value for each in given for key, value in each.items() if key != "options"}
    return together | ({"options": vx.tl.FitOptions(**options)} if options else {})


def resolved(given: Mapping[str, Any]) -> str:
    """Return all settings that arguments of ``fit_vae`` amount to, as text."""
    defaults = {name: p.default for name, p in inspect.signature(vx.tl.fit_vae).parameters.items()}
    full = defaults | dict(given)
    return json.dumps(asdict(resolve(full)) | {"n_fits": full.get("n_fits", 1)}, sort_keys=True, default=str)
