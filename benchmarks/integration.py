"""Compare latent spaces of vxpress, of models of scvi-tools, of Harmony and of PCA: cell types, batches, stability.

    python benchmarks/integration_peers.py --methods pca harmony scvi    # the other methods; takes hours
    python benchmarks/integration.py

Fits vxpress with every setting of ``_settings.py`` that the installed version has, five seeds per data set, computes all
scores of ``_integration.py`` for its embeddings and for those of ``integration_peers.py``, prints one table per data
set and writes ``benchmarks/results/integration.json``. Embeddings and scores are kept in the cache folder. A fit is
repeated if its settings resolve to other values than before; ``--refit`` repeats fits after other changes of the code.

Differences are paired by seed, with 95 % intervals (Student's t); the one value of a deterministic method is paired
with every seed. Held-out likelihoods are bounds with 100 importance samples, in nats per test cell (``_judge.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _integration import RESOLUTIONS, SETS, clusterings, load, overlap, scores
from _paired import MARGIN, paired
from _settings import SETTINGS, arguments, available, resolved
from _speed import save, set_threads
from _versions import here
from fit_ours import judge_fit
from integration_peers import DETERMINISTIC, FOLDER, SAME_FIT
from sklearn.metrics import adjusted_rand_score

import vxpress as vx

OURS = "vx-defaults"
# at the start: the working tree may change during a long run
COMMIT = here().commit
PEERS = ("scvi", "drvi", "sysvi", "harmony", "pca")
PACKAGES = ("scib-metrics", "scvi-tools", "harmonypy", "scanpy", "scikit-learn", "torch")


def path_of(cache: Path, method: str, name: str, seed: int) -> Path:
    """Return the file of an embedding; ``vx-...`` are settings of vxpress."""
    return cache / f"integration-{method.replace(' ', '-')}-{SAME_FIT.get(name, name)}-{seed}.npz"


def fit_ours(setting: str, name: str, seed: int, *, with_test: bool) -> dict[str, np.ndarray]:
    """Fit vxpress once, and evaluate test cells by the first of its models."""
    fit, test = load(name)
    adata = fit.copy()
    given = arguments(SETTINGS[setting])
    start, cpu = time.perf_counter(), time.process_time()
    vx.tl.fit_vae(adata, "batch" if "batch" in fit.obs else None, rng=seed, denoised=False, progress=False, **given)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    held_out = judge_fit(adata, test)[0] if with_test else None
    return {
        "latent_fit": np.asarray(adata.obsm.get("X_vae_ensemble", adata.obsm["X_vae"])),
        "seconds": np.array(seconds),
        "processor seconds": np.array(cpu),
        "commit": np.array(COMMIT),
        "settings": np.array(resolved(given)),
        **({} if held_out is None else {"elbo": held_out.elbo_n, "iwae": held_out.iwae_n}),
    }


def current(path: Path, setting: str) -> bool:
    """Whether a stored fit has the settings of today, apart from options that did not exist when it was made."""
    if not path.exists():
        return False
    with np.load(path) as file:
        then = json.loads(str(file["settings"]))
    today = json.loads(resolved(arguments(SETTINGS[setting])))
    return setting == "0.1" or then == {key: today.get(key) for key in then}


def score(path: Path, name: str, *, with_scib: bool) -> dict[str, Any]:
    """Compute all scores of a stored embedding, or read them: they are stored with the date of the embedding."""
    stored = path.with_name(f"{path.stem}.{name}.json")
    date = path.stat().st_mtime
    known: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    if known.get("date") == date and (not with_scib or known["with scib"]):
        return known
    with np.load(path) as file:
        latent = np.asarray(file["latent_fit"], np.float32)
        others = {
            key: float(file[key].mean()) for key in ("iwae", "elbo", "seconds", "processor seconds") if key in file
        }
        commit = str(file["commit"]) if "commit" in file else ""
    found = clusterings(latent)
    known = {
        "date": date,
        "with scib": with_scib,
        "commit": commit,
        "scores": scores(latent, name, with_scib=with_scib, found=found) | others,
        "clusters": found[RESOLUTIONS.index(1.0)].tolist(),
    }
    stored.write_text(json.dumps(known))
    return known


def stability(paths: Mapping[int, Path], found: Mapping[int, dict[str, Any]], cache: Path) -> dict[str, list[float]]:
    """Compare the embeddings of every pair of seeds: neighbours in common, and ARI of leiden clusters at resolution 1."""
    out: dict[str, list[float]] = {"shared neighbours": [], "ARI of seeds": []}
    file = cache / "integration-overlaps.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    for a, b in combinations(sorted(paths), 2):
        key = f"{paths[a].stem} {found[a]['date']} {paths[b].stem} {found[b]['date']}"
        if key not in known:
            latents = []
            for seed in (a, b):
                with np.load(paths[seed]) as stored:
                    latents.append(np.asarray(stored["latent_fit"], np.float32))
            known[key] = overlap(*latents)
        out["shared neighbours"].append(known[key])
        out["ARI of seeds"].append(float(adjusted_rand_score(found[a]["clusters"], found[b]["clusters"])))
    file.write_text(json.dumps(known))
    return out


def about(name: str) -> dict[str, Any]:
    """Describe a data set."""
    fit, test = load(name)
    obs, which = fit.obs, SETS[name]
    return {
        "cells": fit.n_obs,
        "test cells": test.n_obs,
        "genes": fit.n_vars,
        "batches": obs["batch"].nunique() if "batch" in obs else 0,
        "labels": obs["label"].nunique(),
        "labelled": float(obs["label"].notna().mean()),
        "source": which.source,
        "strong": which.strong,
        "purpose": which.purpose,
    }


def collect(name: str, methods: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Return scores per method and seed, and the stability of methods with two seeds or more."""
    out: dict[str, Any] = {"about": about(name), "methods": {}}
    for method in methods:
        seeds = args.seeds[:1] if method in DETERMINISTIC else args.seeds
        paths = {seed: path_of(args.cache, method, name, seed) for seed in seeds}
        paths = {seed: path for seed, path in paths.items() if path.exists()}
        found = {seed: score(path, name, with_scib=seed in args.scib_seeds) for seed, path in paths.items()}
        if not found:
            continue
        metrics = list(dict.fromkeys(metric for each in found.values() for metric in each["scores"]))
        out["methods"][method] = {
            "seeds": list(found),
            "deterministic": method in DETERMINISTIC,
            "scores": {metric: [rounded(each["scores"].get(metric)) for each in found.values()] for metric in metrics},
            "stability": {
                metric: [rounded(value) for value in values]
                for metric, values in stability(paths, found, args.cache).items()
            },
        }
    return out


def rounded(value: float | None) -> float | None:
    """Round for the file of results."""
    return None if value is None else round(float(value), 5)


def shown(found: dict[str, Any]) -> str:
    """Format the table of a data set: means over seeds, and differences of the defaults from the other methods."""
    methods = found["methods"]
    table = pd.DataFrame({m: pd.Series(each["scores"]).map(_mean) for m, each in methods.items()})
    text = table.to_string(float_format="{:.3f}".format)
    stable = pd.DataFrame({m: pd.Series(each["stability"]).map(_mean) for m, each in methods.items()})
    text += "\n" + stable.to_string(float_format="{:.3f}".format, header=False)
    for other in [m for m in methods if m != OURS and OURS in methods]:
        for metric in ("scib Total", "purity", "ARI best", "iwae"):
            pair = paired(methods[OURS], methods[other], metric)
            if pair is not None:
                text += f"\n{metric}: defaults less {other} {pair.text()}"
                text += "" if metric == "iwae" or pair.low > MARGIN else " below the margin"
    return text


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def versions() -> dict[str, str]:
    """Return the versions of the packages that fit and score."""
    out = {}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "not installed"
    return out


def compile_once(cache: Path) -> None:
    """Keep the compiled functions of scib-metrics on disk: compiling takes a minute per shape, using them seconds."""
    # few functions run for long, so optimising them does not pay
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def main() -> None:
    """Fit, score, print a table per data set and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    parser.add_argument("--settings", nargs="+", default=list(available()), choices=list(available()))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--scib-seeds", nargs="*", type=int, help="seeds scored by scib-metrics; all by default")
    parser.add_argument(
        "--test-seeds", nargs="*", type=int, help="seeds whose fits are judged by test cells; all by default"
    )
    parser.add_argument("--refit", nargs="*", default=[], help="settings whose stored fits are replaced")
    parser.add_argument("--only", choices=["fit", "score"], help="stop after the fits, or score what is stored")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=FOLDER)
    parser.add_argument("--out", default="integration")
    args = parser.parse_args()
    args.scib_seeds = args.seeds if args.scib_seeds is None else args.scib_seeds
    args.test_seeds = args.seeds if args.test_seeds is None else args.test_seeds
    warnings.filterwarnings("ignore")
    args.cache.mkdir(parents=True, exist_ok=True)
    compile_once(args.cache)
    done: set[Path] = set()
    if args.only != "score":
        for seed in args.seeds:
            for name in args.sets:
                for setting in args.settings:
                    path = path_of(args.cache, f"vx-{setting}", name, seed)
                    if path in done or (setting not in args.refit and current(path, setting)):
                        continue
                    set_threads(args.threads)
                    found = fit_ours(
                        setting, name, seed, with_test=seed in args.test_seeds and "n_fits" not in SETTINGS[setting]
                    )
                    np.savez_compressed(path, **found)
                    done.add(path)
                    print(f"{now()} {path.name}: {float(found['seconds']):.0f} s", flush=True)
    if args.only == "fit":
        return
    methods = [f"vx-{setting}" for setting in args.settings] + args.peers
    for name in args.sets:
        set_threads(args.threads)
        found = collect(name, methods, args)
        print(f"\n{now()} {name}\n{shown(found)}", flush=True)
        save(args.out, {name: found, "versions": versions()})


def now() -> str:
    """Return the time of day."""
    return pd.Timestamp.now().strftime("%H:%M:%S")


if __name__ == "__main__":
    main()
