"""Record the exact results of many settings, and compare two records bit by bit.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/bits.py record before
    (change the code)
    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/bits.py record after
    python benchmarks/bits.py compare before after

For changes of the code that should not change any number. ``record`` runs small fits and analyses through the public
functions and writes everything that they return: latent space, weights, history, denoised layer, diagnostics, tables
and scores. ``hashes.json`` holds a hash of every array with versions, processor and threads; one ``.npz`` per setting
holds the arrays. ``compare`` reports the largest difference of every array that is not bit-identical, and ends with
status 1 if there is one, or if a setting or an array is missing in the second record. What does not count as a
difference is only listed: arrays that are new in the second record, weights with other names but the same values,
texts, and settings in ``params`` that exist in one record only.

The same code gives the same bits only on the same processor with the same versions. The number of threads, ``--threads``,
changes no bits: ``record one --threads 1``, ``record four --threads 4`` and ``compare one four`` check that.
The data are so small that nothing would be compiled for them; the records are those of compiled loops, unless ``--small``.
``--only`` records settings whose names contain one of the given strings, ``list`` prints all names. The form of the
training step that GPUs use runs on the processor here; :func:`device_form` is the only function that uses internals.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from _speed import machine
from anndata import AnnData
from scipy import sparse

import vxpress as vx

Arrays = dict[str, np.ndarray]
Setting = Callable[[], Arrays]
SETTINGS: dict[str, Setting] = {}

N_FIT, N_CALIBRATION, N_QUERY, N_GENES = 320, 210, 70, 300
SMALL: dict[str, Any] = {"n_latent": 4, "n_hidden": 32, "max_epochs": 4, "batch_size": 64, "progress": False}
COVARIATES: dict[str, Any] = {
    "batch_key": "batch",
    "categorical_covariate_keys": ["donor"],
    "continuous_covariate_keys": ["age"],
}
PRIORS = ("normal", "mixture", "vamp", "flow", "diffusion", "flow_matching")
Options = vx.tl.FitOptions


# data


@cache
def _all_cells() -> AnnData:
    return _with_columns(vx.datasets.simulate(N_FIT + N_CALIBRATION + N_QUERY, N_GENES, n_batches=3, rng=1))


@cache
def _many_cells() -> AnnData:
    """Simulate more cells than one chunk of an evaluation holds."""
    return _with_columns(vx.datasets.simulate(2600, 120, n_batches=2, rng=2))


def _with_columns(adata: AnnData) -> AnnData:
    rng = np.random.default_rng(0)
    adata.obs["donor"] = pd.Categorical(rng.choice(["p", "q", "r"], adata.n_obs))
    adata.obs["age"] = rng.normal(50.0, 9.0, adata.n_obs)
    adata.obs["size"] = np.asarray(adata.X.sum(axis=1)).ravel() / 700.0
    adata.var["chosen"] = np.arange(adata.n_vars) % 3 != 0
    return adata


def cells() -> AnnData:
    """Return a copy of the cells that models are fitted to."""
    return _all_cells()[:N_FIT].copy()


def calibration() -> AnnData:
    """Return cells of the same batches that are not part of any fit."""
    return _all_cells()[N_FIT : N_FIT + N_CALIBRATION].copy()


def query() -> AnnData:
    """Return further cells to encode."""
    return _all_cells()[N_FIT + N_CALIBRATION :].copy()


# what is recorded


def arrays_of(result: AnnData) -> Arrays:
    """Collect everything in an AnnData as plain arrays, by place."""
    out: Arrays = {}
    if result.X is not None:
        _put(out, "X", result.X)
    for place in ("layers", "obsm", "varm", "obsp"):
        for name, value in getattr(result, place).items():
            if name is not None:  # newer versions of anndata list X among the layers
                _put(out, f"{place}/{name}", value)
    _put(out, "obs", result.obs)
    _put(out, "var", result.var)
    _put(out, "uns", dict(result.uns))
    # the record of a fit may be organised otherwise; its checksum and format are not results
    out = {k: v for k, v in out.items() if not (k.startswith("uns/") and k.endswith(("/format", "/sha256")))}
    for fit in {k.split("/weights/")[0] for k in out if "/weights/" in k}:
        weights = [out[k] for k in out if k.startswith(f"{fit}/weights/")]
        out[f"{fit}/weight values"] = np.array(sorted(digest(value) for value in weights))
    return out


def _put(out: Arrays, name: str, value: Any) -> None:
    """Add a value, part by part if it is a container."""
    if isinstance(value, Mapping):
        for key in value:
            _put(out, f"{name}/{key}", value[key])
    elif isinstance(value, pd.DataFrame):
        _put(out, f"{name}/index", value.index)
        for key in value.columns:
            _put(out, f"{name}/{key}", value[key])
    elif sparse.issparse(value):
        for part in ("data", "indices", "indptr"):
            _put(out, f"{name}/{part}", getattr(value.tocsr(), part))
    elif isinstance(value, np.ndarray) and value.dtype.names:
        for key in value.dtype.names:
            _put(out, f"{name}/{key}", value[key])
    elif isinstance(value, (list, tuple)) and any(isinstance(part, (Mapping, list, tuple)) for part in value):
        for i, part in enumerate(value):
            _put(out, f"{name}/{i}", part)
    elif value is not None:
        array = np.asarray(value)
        out[name] = array if array.dtype.kind in "biuf" else array.astype(str)


def digest(array: np.ndarray) -> str:
    """Hash type, shape and bytes of an array."""
    array = np.ascontiguousarray(array) if array.ndim else array
    text = f"{'U' if array.dtype.kind == 'U' else array.dtype.str} {array.shape} "
    content = "\0".join(array.ravel().tolist()).encode() if array.dtype.kind == "U" else array.tobytes()
    return hashlib.sha256(text.encode() + content).hexdigest()


def added(before: AnnData, after: AnnData) -> Arrays:
    """Collect what a call added or changed."""
    known = {name: digest(value) for name, value in arrays_of(before).items()}
    return {name: value for name, value in arrays_of(after).items() if known.get(name) != digest(value)}


# fits


def setting(name: str) -> Callable[[Setting], Setting]:
    """Add a function to the settings under this name."""

    def add(function: Setting) -> Setting:
        if name in SETTINGS:
            msg = f"two settings are named {name!r}"
            raise ValueError(msg)
        SETTINGS[name] = function
        return function

    return add


def fitted(given: Callable[[], AnnData] = cells, **arguments: Any) -> AnnData:
    """Fit a model to new cells."""
    adata = given()
    vx.tl.fit_vae(adata, **{**SMALL, **arguments})
    return adata


def fit_result(given: Callable[[], AnnData] = cells, **arguments: Any) -> Arrays:
    """Return everything that a fit writes."""
    return added(given(), fitted(given, **arguments))


LATENT: dict[str, Any] = {"library": "latent", "batch_key": "batch"}
FITS: dict[str, dict[str, Any]] = {
    # defaults and presets
    "defaults": {"n_latent": None, "n_hidden": None, "batch_size": None},
    "defaults, batch": {"n_latent": None, "n_hidden": None, "batch_size": None, "batch_key": "batch"},
    "no batch": {},
    "batch": {"batch_key": "batch"},
    "preset scvi": {"preset": "scvi", "batch_key": "batch"},
    "preset scvi, zinb": {"preset": "scvi", "batch_key": "batch", "likelihood": "zinb"},
    "preset likelihood": {"preset": "likelihood", **COVARIATES},
    # likelihoods and dispersions
    **{f"likelihood {name}": {"likelihood": name, **COVARIATES} for name in ("nb", "zinb", "poisson")},
    **{f"likelihood {name}": {"likelihood": name, **COVARIATES} for name in ("gaussian", "bernoulli")},
    "likelihood auto": {"likelihood": "auto", "batch_key": "batch"},
    "dispersion gene-batch": {"dispersion": "gene-batch", "batch_key": "batch"},
    "dispersion gene-label": {"dispersion": "gene-label", "labels_key": "group"},
    "dispersion gene-cell": {"dispersion": "gene-cell"},
    "dispersion gene-batch, zinb": {"dispersion": "gene-batch", "batch_key": "batch", "likelihood": "zinb"},
    "dispersion gene-label, gaussian": {"dispersion": "gene-label", "labels_key": "group", "likelihood": "gaussian"},
    "dispersion gene-cell, zinb": {"dispersion": "gene-cell", "likelihood": "zinb"},
    "dispersion not refitted": {"options": Options(refit_dispersion=False)},
    # size factors
    "library column": {"library": "size"},
    "library latent": LATENT,
    "library latent, no batch": {"library": "latent"},
    "library latent, zinb": {**LATENT, "likelihood": "zinb"},
    "library latent, poisson": {**LATENT, "likelihood": "poisson"},
    "library latent, iwae": {**LATENT, "objective": "iwae", "options": Options(n_samples=3)},
    "library latent, dreg": {**LATENT, "objective": "dreg", "options": Options(n_samples=3)},
    "library latent, encoder steps": {**LATENT, "options": Options(encoder_steps=1)},
    "library latent, covariates encoded": {
        "library": "latent",
        **COVARIATES,
        "options": Options(encode_covariates=True),
    },
    "library latent, free bits": {**LATENT, "free_bits": 0.2},
    "library latent, capacity": {**LATENT, "beta": 5.0, "options": Options(kl_schedule="capacity", kl_capacity=3.0)},
    "library latent, flow": {**LATENT, "prior": "flow"},
    "library latent, gene-batch": {**LATENT, "dispersion": "gene-batch"},
    # priors
    **{f"prior {name}": {"prior": name, "batch_key": "batch"} for name in PRIORS if name != "normal"},
    "prior vamp, covariates": {"prior": "vamp", **COVARIATES},
    "prior vamp, covariates encoded": {"prior": "vamp", **COVARIATES, "options": Options(encode_covariates=True)},
    "prior vamp, 7 components": {"prior": "vamp", "options": Options(prior_components=7)},
    "prior mixture, iwae": {"prior": "mixture", "objective": "iwae", "options": Options(n_samples=3)},
    "prior flow, dreg": {"prior": "flow", "objective": "dreg", "options": Options(n_samples=3)},
    "prior diffusion, encoder steps": {"prior": "diffusion", "options": Options(encoder_steps=1)},
    # objectives and schedules
    "objective iwae": {"objective": "iwae", "batch_key": "batch", "options": Options(n_samples=3)},
    "objective dreg": {"objective": "dreg", "batch_key": "batch", "options": Options(n_samples=3)},
    "objective dreg, beta 0.5": {"objective": "dreg", "beta": 0.5, "options": Options(n_samples=3)},
    "beta 0.5": {"beta": 0.5},
    "beta 4": {"beta": 4.0},
    "no warm-up": {"kl_warmup": 0.0},
    "cyclical": {"options": Options(kl_schedule="cyclical", kl_cycles=2)},
    "capacity": {"beta": 5.0, "options": Options(kl_schedule="capacity", kl_capacity=3.0)},
    "free bits soft": {"free_bits": 0.2},
    "free bits soft, beta 2": {"free_bits": 0.2, "beta": 2.0},
    "free bits hard": {"free_bits": 0.2, "options": Options(free_bits_form="hard")},
    "free bits soft, flow": {"free_bits": 0.2, "prior": "flow"},
    "free bits hard, mixture": {"free_bits": 0.2, "prior": "mixture", "options": Options(free_bits_form="hard")},
    "free bits soft, encoder steps": {"free_bits": 0.2, "options": Options(encoder_steps=1)},
    "encoder steps": {"options": Options(encoder_steps=1), "batch_key": "batch"},
    "encoder steps 2, zinb": {"options": Options(encoder_steps=2), "likelihood": "zinb"},
    # networks
    **{f"decoder {n}": {**COVARIATES, "options": Options(decoder=n)} for n in ("skip", "linear", "split")},
    "decoder skip, 2 layers": {"n_layers": 2, "options": Options(decoder="skip")},
    "decoder split, latent library": {"library": "latent", "options": Options(decoder="split")},
    "decoder linear, gaussian": {"likelihood": "gaussian", "options": Options(decoder="linear")},
    "2 layers": {"n_layers": 2, **COVARIATES},
    "norm layer": {"options": Options(norm="layer")},
    "norm none": {"options": Options(norm="none")},
    "no dropout": {"options": Options(dropout=0.0)},
    # covariates
    "covariates": COVARIATES,
    "covariates, embedding": {**COVARIATES, "options": Options(covariate_code="embedding", n_embedding=3)},
    "covariates, output": {**COVARIATES, "options": Options(condition_output=True)},
    "covariates, encoded": {**COVARIATES, "options": Options(encode_covariates=True)},
    "covariates, embedding, encoded, output": {
        **COVARIATES,
        "options": Options(covariate_code="embedding", n_embedding=3, encode_covariates=True, condition_output=True),
    },
    # the loop
    "batch size 1000": {"batch_size": 1000},
    "batch size 37": {"batch_size": 37, "batch_key": "batch"},
    "batch size 5": {"batch_size": 5, "max_epochs": 2},
    "nothing held out": {"validation_fraction": 0.0},
    "early stopping": {"max_epochs": 40, "kl_warmup": 0.05, "options": Options(patience=2)},
    "last state": {"options": Options(keep_best=False), "early_stopping": False},
    "constant rate, adam": {"options": Options(optimizer="adam", schedule="constant", learning_rate=0.003)},
    "clipped gradients": {"options": Options(max_grad_norm=1.0)},
    "other seeds": {"rng": 7, "split_rng": 5, "batch_key": "batch"},
    "sound fit": {"max_epochs": 60, "n_latent": 3, "batch_key": "batch"},
    "cure": {"max_epochs": 30, "beta": 8.0, "cure": True, "options": Options(patience=30)},
    "cure, latent library": {"max_epochs": 30, "beta": 8.0, "cure": True, "library": "latent", "n_latent": 3},
    "cure, auto": {"max_epochs": 30, "beta": 8.0, "cure": True, "likelihood": "auto", "n_latent": 3},
    # some genes modelled, the others read out
    "some genes": {"mask_var": "chosen", **COVARIATES},
    "some genes, zinb": {"mask_var": "chosen", "likelihood": "zinb"},
    "some genes, gaussian": {"mask_var": "chosen", "likelihood": "gaussian", "batch_key": "batch"},
    "some genes, bernoulli": {"mask_var": "chosen", "likelihood": "bernoulli"},
    "some genes, latent library": {"mask_var": "chosen", **LATENT},
    "some genes, no readout": {"mask_var": "chosen", "options": Options(readout=False)},
}
for _name, _arguments in FITS.items():
    SETTINGS[f"fit: {_name}"] = partial(fit_result, **_arguments)

LARGE: dict[str, dict[str, Any]] = {
    "defaults": {"batch_key": "batch", "max_epochs": 2},
    "latent library": {**LATENT, "max_epochs": 2},
    "dreg": {"objective": "dreg", "max_epochs": 1, "batch_key": "batch"},
    "some genes": {"mask_var": "chosen", "max_epochs": 2},
    "vamp": {"prior": "vamp", "max_epochs": 1},
}


def large(**arguments: Any) -> Arrays:
    """Fit more cells than fit in a chunk, and evaluate them."""
    adata = fitted(lambda: _many_cells().copy(), **{"batch_size": 512, **arguments})
    vx.tl.log_likelihood(adata, n_samples=4)
    vx.tl.denoise(adata, transform_batch="observed", key_added="observed")
    vx.tl.sample(adata)
    vx.tl.rank_genes_groups(adata, "group", n_draws=2)
    vx.tl.predictive_check(adata, n_draws=2)
    return added(_many_cells(), adata)


for _name, _arguments in LARGE.items():
    SETTINGS[f"many cells: {_name}"] = partial(large, **_arguments)


@setting("input: dense, layer, numbers as categories")
def _other_input() -> Arrays:
    def given() -> AnnData:
        adata = cells()
        adata.layers["counts"] = adata.X.toarray().astype(np.int64)
        adata.X = np.zeros(adata.shape, np.float32)
        adata.obs["batch"] = adata.obs["batch"].cat.codes.to_numpy()
        return adata

    return fit_result(given, layer="counts", batch_key="batch")


@setting("input: cells without counts")
def _empty_cells() -> Arrays:
    def given() -> AnnData:
        adata = cells()
        x = adata.X.tolil()
        x[[3, 50]] = 0
        adata.X = x.tocsr()
        adata.obs = adata.obs.drop(columns="library_size")
        return adata

    return fit_result(given, batch_key="batch")


# the GPU's form of a step


@contextmanager
def device_form() -> Iterator[None]:
    """Within this block, fits on the processor use the training step, padded entries and likelihoods of a GPU.

    This is the only part of this script that depends on internals: adapt it if they move, so that the same operations run.
    """
    from vxpress.core import rule
    from vxpress.core.data import Counts
    from vxpress.core.likelihoods import counted
    from vxpress.core.training import step

    with ExitStack() as stack:
        stack.enter_context(rule.plain())
        stack.enter_context(patch.object(step, "Step", step.DeviceStep))
        stack.enter_context(
            patch.object(Counts, "dense", lambda self, rows, out=None, _=None: self.padded_dense(rows, out))
        )
        stack.enter_context(patch.object(counted, "gathered", counted.selected))
        yield


DEVICE: dict[str, dict[str, Any]] = {
    "nb": {"batch_key": "batch"},
    "zinb": {"likelihood": "zinb"},
    "gene-cell": {"dispersion": "gene-cell"},
    "latent library": {**LATENT, "dispersion": "gene-batch"},
    "dreg": {"objective": "dreg", "options": Options(n_samples=3)},
    "soft free bits": {"free_bits": 0.2, "beta": 2.0},
    "hard free bits": {"free_bits": 0.2, "options": Options(free_bits_form="hard")},
    "capacity": {"beta": 5.0, "options": Options(kl_schedule="capacity", kl_capacity=2.0)},
    "encoder steps": {"options": Options(encoder_steps=2)},
    "vamp": {"prior": "vamp"},
}


def on_device(*, stream: bool, **arguments: Any) -> Arrays:
    """Fit with the GPU's form of the step; with ``stream``, counts are assembled for every minibatch."""
    if stream:
        arguments["options"] = replace(arguments.get("options") or Options(), source="streamed")
    with device_form():
        return fit_result(**arguments)


for _name, _arguments in DEVICE.items():
    SETTINGS[f"device: {_name}"] = partial(on_device, stream=False, **_arguments)
    SETTINGS[f"device, streamed: {_name}"] = partial(on_device, stream=True, **_arguments)


# analyses of a fit


BASES: dict[str, dict[str, Any]] = {
    "observed": {**COVARIATES, "max_epochs": 15},
    "latent": {**COVARIATES, "max_epochs": 15, "library": "latent"},
    "some genes": {**COVARIATES, "max_epochs": 8, "mask_var": "chosen"},
    "gaussian": {**COVARIATES, "max_epochs": 8, "likelihood": "gaussian"},
    "zinb": {**COVARIATES, "max_epochs": 8, "likelihood": "zinb", "dispersion": "gene-batch"},
}
# which analyses also run on the fits after the first two
ON_ALL = (
    "denoise: layer",
    "sample: one",
    "log_likelihood",
    "predictive_check",
    "counterfactual: donor",
    "generate: cells",
)


@cache
def _base(name: str) -> AnnData:
    return fitted(**BASES[name])


Analysis = Callable[[AnnData], AnnData | None]


def _few(adata: AnnData) -> list[str]:
    return adata.var_names[[4, 0, 11]].to_list()


def _prior(adata: AnnData, kind: str, **arguments: Any) -> None:
    vx.tl.fit_prior(adata, kind, max_steps=60, **arguments)
    vx.tl.log_likelihood(adata, n_samples=5)


def _generated_with_labels(adata: AnnData) -> AnnData:
    vx.tl.fit_prior(adata, "mixture", condition_key="group", n_components=3)
    return vx.tl.generate(adata, labels=adata.obs["group"].value_counts())


def _flow_path(adata: AnnData) -> AnnData:
    vx.tl.fit_prior(adata, "flow", max_steps=60)
    return _path(adata, "flow")


def _path(adata: AnnData, method: Any) -> AnnData:
    first, last = adata.obs["group"].cat.categories[[0, -1]]
    return vx.tl.interpolate(adata, first, last, groupby="group", n_steps=5, method=method)


def _graph(adata: AnnData) -> None:
    vx.pp.neighbors(adata, n_draws=3)
    vx.tl.cluster_stability(adata, "group")


def _sets(adata: AnnData) -> None:
    group = adata.obs["group"]
    first, second = group.cat.categories[:2]
    vx.tl.rank_genes_groups(
        adata, cells={"a": group == first}, reference_cells={"b": np.flatnonzero(group == second)}, delta=0.5
    )


ANALYSES: dict[str, Analysis] = {
    "denoise: layer": lambda a: vx.tl.denoise(a, key_added="again"),
    "denoise: one batch": lambda a: vx.tl.denoise(a, transform_batch=a.obs["batch"].cat.categories[1]),
    "denoise: own batch, counts": lambda a: vx.tl.denoise(a, transform_batch="observed", target_sum="library"),
    "denoise: own counts": lambda a: vx.tl.denoise(a, own_counts=True),
    "denoise: genes, interval": lambda a: vx.tl.denoise(a, genes=_few(a), interval=0.9, n_draws=20),
    "denoise: float16": lambda a: vx.tl.denoise(a, dtype="float16"),
    "denoise: sparse": lambda a: vx.tl.denoise(a, drop_below=5.0),
    "counterfactual: batch": lambda a: vx.tl.counterfactual(a, "batch", a.obs["batch"].cat.categories[0]),
    "counterfactual: donor": lambda a: vx.tl.counterfactual(a, "donor", "q", n_draws=3),
    "counterfactual: age, genes": lambda a: vx.tl.counterfactual(a, "age", 60.0, genes=_few(a)),
    "sample: one": vx.tl.sample,
    "sample: three": lambda a: vx.tl.sample(a, n_samples=3),
    "sample: other batch": lambda a: vx.tl.sample(a, transform_batch=a.obs["batch"].cat.categories[2]),
    "generate: cells": lambda a: vx.tl.generate(a, 100),
    "generate: covariates, library": lambda a: vx.tl.generate(a, 50, covariates={"donor": "p"}, library=900.0),
    "generate: labels": _generated_with_labels,
    "interpolate: linear": lambda a: _path(a, "linear"),
    "interpolate: spherical": lambda a: _path(a, "spherical"),
    "interpolate: flow": _flow_path,
    "log_likelihood": lambda a: vx.tl.log_likelihood(a, n_samples=30),
    "diagnose": lambda a: vx.tl.diagnose(a, n_cells=20),
    "predictive_check": lambda a: vx.tl.predictive_check(a, n_draws=4),
    "rank: all": lambda a: vx.tl.rank_genes_groups(a, "group"),
    "rank: one reference": lambda a: vx.tl.rank_genes_groups(
        a, "group", reference=a.obs["group"].cat.categories[0], use_counts=False
    ),
    "rank: sets": _sets,
    "rank: samples": lambda a: vx.tl.rank_genes_groups(a, "group", sample_key="donor"),
    "neighbors": _graph,
    "neighbors: euclidean": lambda a: vx.pp.neighbors(a, distance="euclidean"),
    **{f"fit_prior: {kind}": partial(_prior, kind=kind) for kind in PRIORS if kind != "normal"},
    "fit_prior: flow with labels": partial(_prior, kind="flow", condition_key="group"),
}


def analysed(base: str, analysis: Analysis) -> Arrays:
    """Return what an analysis of a copy of a fit writes or returns."""
    before = _base(base)
    adata = before.copy()
    returned = analysis(adata)
    return added(before, adata) if returned is None else arrays_of(returned)


def _outliers(base: str) -> Arrays:
    before = query()
    after = before.copy()
    vx.tl.outliers(after, _base(base), calibration=calibration(), min_stratum=60)
    return added(before, after)


def _compared(library: str) -> Arrays:
    before = calibration()
    after, models = before.copy(), {"first": _base(library)}
    for name, arguments in {"two": {"n_latent": 2}, "again": {"rng": 3}, "zinb": {"likelihood": "zinb"}}.items():
        models[name] = fitted(**{**BASES[library], **arguments}, denoised=False)
    vx.tl.compare(after, models, n_samples=30)
    return added(before, after)


def _of_generated_library() -> Arrays:
    return arrays_of(vx.tl.generate(_base("latent").copy(), 50, library="prior"))


for _base_name in BASES:
    SETTINGS[f"{_base_name}: outliers"] = partial(_outliers, _base_name)
    for _name, _analysis in ANALYSES.items():
        if _base_name in ("observed", "latent") or _name in ON_ALL:
            SETTINGS[f"{_base_name}: {_name}"] = partial(analysed, _base_name, _analysis)
SETTINGS["latent: generate: library from prior"] = _of_generated_library
for _library in ("observed", "latent"):
    SETTINGS[f"{_library}: compare"] = partial(_compared, _library)
for _name in ("rank: all", "neighbors: euclidean"):
    SETTINGS[f"zinb: {_name}"] = partial(analysed, "zinb", ANALYSES[_name])


# encoding


def _same(adata: AnnData) -> AnnData:
    return adata


def _missing_genes(adata: AnnData) -> AnnData:
    return adata[:, np.arange(adata.n_vars) % 4 != 1][:, ::-1].copy()


def _unseen_batch(adata: AnnData) -> AnnData:
    adata.obs["batch"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, "new", adata.obs["batch"].astype(str)))
    return adata


QUERIES: dict[str, tuple[Callable[[AnnData], AnnData], dict[str, Any]]] = {
    "same genes": (_same, {}),
    "missing genes": (_missing_genes, {}),
    "unseen batch": (_unseen_batch, {}),
    "unseen batch, fine-tuned": (_unseen_batch, {"fine_tune": 3}),
}


def encoded(base: Callable[[], AnnData], made: Callable[[AnnData], AnnData], arguments: dict[str, Any]) -> Arrays:
    """Encode and denoise new cells, and evaluate them."""
    before = made(query())
    after = before.copy()
    vx.tl.encode(after, base(), **arguments)
    vx.tl.denoise(after)
    if after.n_vars == N_GENES:  # counts are not compared with a model of other genes
        vx.tl.log_likelihood(after, n_samples=5)
        vx.tl.diagnose(after, n_cells=10)
    return added(before, after)


@cache
def _encoding_covariates(library: str) -> AnnData:
    return fitted(**COVARIATES, library=library, options=Options(encode_covariates=True))


for _name, (_made, _arguments) in QUERIES.items():
    for _base_name in BASES:
        SETTINGS[f"encode: {_name}, {_base_name}"] = partial(encoded, partial(_base, _base_name), _made, _arguments)
    for _library in ("observed", "latent"):
        SETTINGS[f"encode: {_name}, covariates encoded, {_library}"] = partial(
            encoded, partial(_encoding_covariates, _library), _made, _arguments
        )


def from_file(kind: str) -> Arrays:
    """Encode with a model that was written to a file and read again."""
    before = query()
    after = before.copy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"fit.{kind}"
        if kind == "safetensors":
            vx.save_model(_base("latent"), path)
        else:
            _base("latent").write_h5ad(path)
        vx.tl.encode(after, path)
        vx.tl.log_likelihood(after, path, n_samples=5)
    return added(before, after)


for _kind in ("safetensors", "h5ad"):
    SETTINGS[f"encode: from {_kind}"] = partial(from_file, _kind)


@setting("preprocessing")
def _preprocessing() -> Arrays:
    before = cells()
    after = before.copy()
    vx.pp.library_size(after, key_added="molecules")
    vx.pp.highly_variable_genes(after, n_top_genes=80, batch_key="batch")
    return added(before, after)


# record and compare


def record(folder: Path, only: list[str]) -> int:
    """Run the settings and write their arrays and hashes; return 1 if any failed."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {n: f for n, f in SETTINGS.items() if not only or any(part in n for part in only)}
    hashes, seconds, failed = {}, {}, []
    for name, function in chosen.items():
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                arrays = function()
            if not arrays:
                msg = f"{name}: nothing was recorded"
                raise RuntimeError(msg)
        except Exception:  # noqa: BLE001 - the other settings are still recorded
            traceback.print_exc()
            failed.append(name)
            continue
        seconds[name] = round(time.perf_counter() - start, 2)
        hashes[name] = {key: digest(value) for key, value in sorted(arrays.items())}
        np.savez(_file(folder, name), **{key.replace("/", "|"): value for key, value in arrays.items()})
        print(f"{seconds[name]:6.2f} s  {len(arrays):4d} arrays  {name}", flush=True)
    threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")}
    out = {"machine": machine(), "environment": threads, "seconds": seconds, "failed": failed, "hashes": hashes}
    (folder / "hashes.json").write_text(json.dumps(out, indent=1) + "\n")
    n_arrays = sum(map(len, hashes.values()))
    print(f"{len(hashes)} settings, {n_arrays} arrays, {sum(seconds.values()):.0f} s; failed: {failed or 'none'}")
    return 1 if failed else 0


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(': ', '--').replace(', ', '-').replace(' ', '_')}.npz"


def compare(one: Path, two: Path, tolerance: float) -> int:
    """Print what differs; return 1 if anything differs by more than ``tolerance`` or is missing in the second."""
    a, b = (json.loads((folder / "hashes.json").read_text()) for folder in (one, two))
    for part in ("machine", "environment"):
        if a[part] != b[part]:
            print(f"note: other {part}:\n  {a[part]}\n  {b[part]}")
    n_same, n_within, bad, notes = 0, 0, [], []
    for name, first in a["hashes"].items():
        if name not in b["hashes"]:
            bad.append(f"{name}: the setting is missing")
            continue
        second = b["hashes"][name]
        notes += [f"{name}: {key} is new" for key in second.keys() - first.keys()]
        for key, value in first.items():
            if second.get(key) == value:
                n_same += 1
                continue
            text, severity = _difference(one, two, name, key, first, second, tolerance)
            n_within += severity == "within"
            (bad if severity == "bad" else notes).append(f"{name}: {key} {text}")
    notes += [f"{name}: the setting is new" for name in b["hashes"].keys() - a["hashes"].keys()]
    for line in notes:
        print(f"note: {line}")
    for line in bad:
        print(f"DIFFERS: {line}")
    print(
        f"{len(a['hashes'])} settings: {n_same} arrays have the same bits, {n_within} are within {tolerance:g}, "
        f"{len(bad)} differ or are missing"
    )
    return 1 if bad else 0


def _difference(
    one: Path, two: Path, name: str, key: str, first: Mapping[str, str], second: Mapping[str, str], tolerance: float
) -> tuple[str, str]:
    """Describe the difference of an array; it is "bad", "within" the tolerance, or only a "note"."""
    if key not in second:
        values = f"{key.split('/weights/', maxsplit=1)[0]}/weight values"
        if "/weights/" in key and first[values] == second.get(values):
            return "has another name", "note"
        return "is missing", "note" if "/params/" in key else "bad"
    x, y = (np.load(_file(folder, name))[key.replace("/", "|")] for folder in (one, two))
    if x.dtype.kind == "U" or y.dtype.kind == "U":
        if x.ndim == y.ndim == 0:
            return f"reads {str(y)!r} instead of {str(x)!r}", "note"
        if "/diagnostics/cure/" in key:
            return f"reads {y.tolist()} instead of {x.tolist()}", "note"
        if key.endswith("/weight values"):
            return "hold other bytes", "note"  # each weight is reported by itself
        n = int((x != y).sum()) if x.shape == y.shape else None
        return ("has another shape" if n is None else f"has {n} other texts of {x.size}"), "bad"
    if x.shape != y.shape:
        return f"has shape {y.shape} instead of {x.shape}", "bad"
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    if not np.array_equal(np.isfinite(x64), np.isfinite(y64)):
        return "is not finite in other places", "bad"
    finite = np.isfinite(x64)
    apart = np.abs(x64 - y64)[finite]
    absolute = float(apart.max(initial=0.0))
    # relative to the size of the array's entries, so that entries near 0 do not count more than others
    scale = float(np.abs(x64[finite]).max(initial=0.0))
    text = f"differs by {absolute:.3g}, {absolute / scale if scale else 0.0:.3g} of its largest entry {scale:.3g}"
    if x.dtype != y.dtype:
        return f"{text}; type {y.dtype} instead of {x.dtype}", "bad"
    within = bool((apart <= tolerance * np.maximum(1.0, np.abs(x64[finite]))).all()) and tolerance > 0
    return text, "within" if within else "bad"


def main() -> int:
    """Record, compare or list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the settings and write their results")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--only", nargs="+", default=[], help="parts of the names of settings")
    recording.add_argument(
        "--small", action="store_true", help="without compiled loops, as other calls for data of this size"
    )
    recording.add_argument("--threads", type=int, help="number of threads; left as it is by default")
    comparing = commands.add_parser("compare", help="compare two records")
    comparing.add_argument("one", type=Path)
    comparing.add_argument("two", type=Path)
    comparing.add_argument("--tolerance", type=float, default=0.0, help="absolute below 1, relative above")
    commands.add_parser("list", help="print the names of the settings")
    args = parser.parse_args()
    if args.command == "record":
        if not args.small:
            from vxpress.core import rule

            rule.SMALL = 0
        if args.threads is not None:
            torch.set_num_threads(args.threads)
            # whatever other programs run
            os.environ["VXPRESS_NUM_THREADS"] = str(args.threads)
        return record(args.folder, args.only)
    if args.command == "compare":
        return compare(args.one, args.two, args.tolerance)
    print("\n".join(SETTINGS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
