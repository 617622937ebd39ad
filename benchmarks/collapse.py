"""Test whether verdicts distinguish ill fits from healthy ones, and whether they are cured.

    python benchmarks/collapse.py                                  # everything, on the reported data sets
    python benchmarks/collapse.py --sets paul15 cite --seeds 0     # the data sets on which thresholds were set
    python benchmarks/collapse.py --parts table                    # only the tables, from cached fits

Every fit is stored as a line of ``benchmarks/cache/collapse.jsonl``, so that a rerun continues where it stopped.
A fit is ill if its IWAE on test cells is more than 1 % below that of the healthy fit of the same data set and seed, or if
its I_q(x; z), over all cells except the test cells, is less than half. The healthy fit uses the defaults.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from _cache import FOLDER
from _sets import SETS, load
from _speed import save, set_threads

FILE = FOLDER / "collapse.jsonl"
N_TEST, N_SAMPLES = 300, 50
HEALTHY = "default"
MAX_LOSS, MIN_INFORMATION = 0.01, 0.5


@dataclass(frozen=True)
class Regime:
    """A way to make a fit ill: arguments of fit_vae, number of cells, and whether labels are a covariate."""

    arguments: dict[str, Any] = field(default_factory=dict)
    n_cells: int | None = None
    labels: bool = False


REGIMES = {
    "latent64": Regime({"n_latent": 64}),
    "beta20": Regime({"beta": 20.0}),
    "beta50": Regime({"beta": 50.0}),
    "beta100": Regime({"beta": 100.0}),
    "n500": Regime(n_cells=500),
    "wide": Regime({"n_hidden": 1024}, labels=True),
    "nowarmup": Regime({"kl_warmup": 0.0}),
}


def main() -> None:
    """Run fits that are not cached, print both tables and write ``results/collapse.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--healthy-seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--parts", nargs="+", default=["fit", "cure", "table"], choices=["fit", "cure", "table"])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(args.threads)
    known = read()
    for name in args.sets:
        pair = None
        for regime, seed in wanted(args):
            for cured in (False, True):
                key = f"{name}/{regime}/{seed}/{'cured' if cured else 'asked'}"
                if key in known or ("cure" if cured else "fit") not in args.parts:
                    continue
                if cured and (f"{name}/{regime}/{seed}/asked" not in known or sound(known, name, regime, seed)):
                    continue
                if REGIMES.get(regime, Regime()).labels and SETS[name].labels is None:
                    continue
                pair = load(name) if pair is None else pair
                known[key] = fit(name, regime, seed, pair, cured=cured)
                write(key, known[key])
    if "table" in args.parts:
        report(known, args)


def wanted(args: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """List the healthy fits of all seeds, then those of every regime."""
    for seed in sorted({*args.healthy_seeds, *args.seeds}):
        yield HEALTHY, seed
    for regime in args.regimes:
        for seed in args.seeds:
            yield regime, seed


def read() -> dict[str, dict[str, Any]]:
    """Read all lines of the cache by key."""
    if not FILE.exists():
        return {}
    return {row["key"]: row for row in map(json.loads, FILE.read_text().splitlines())}


def write(key: str, row: dict[str, Any]) -> None:
    """Append a line to the cache and print it."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("a") as file:
        file.write(json.dumps({"key": key, **row}) + "\n")
    print(
        f"{key}: {row['seconds']:.0f} s, IWAE {row['iwae']:.2f}, I_q {row['information']:.2f}, {row['active']} active; "
        f"{row['verdict'][:60]}",
        flush=True,
    )


def sound(known: dict[str, dict[str, Any]], name: str, regime: str, seed: int) -> bool:
    """Return whether the verdict of a fit requires no action."""
    return known[f"{name}/{regime}/{seed}/asked"]["verdict"].startswith(("healthy", "unused"))


def fit(name: str, regime: str, seed: int, pair: tuple[Any, Any], *, cured: bool) -> dict[str, Any]:
    """Make one fit, plain or with ``cure=True``, and measure it."""
    import scanpy as sc

    import vxpress as vx

    sc.settings.verbosity = 0
    how = REGIMES.get(regime, Regime())
    everyone, test = (part.copy() for part in pair)
    arguments = dict(how.arguments)
    if how.labels:
        for part in (everyone, test):
            part.obs["given"] = part.obs[SETS[name].labels].astype(object).fillna("unlabelled").astype(str)
        test = test[test.obs["given"].isin(everyone.obs["given"])].copy()
        arguments["categorical_covariate_keys"] = ["given"]
    test = test[np.sort(np.random.default_rng(0).permutation(test.n_obs)[:N_TEST])].copy()
    cells = everyone
    if how.n_cells is not None:
        cells = everyone[np.sort(np.random.default_rng(seed).permutation(everyone.n_obs)[: how.n_cells])].copy()
    batch = "batch" if SETS[name].batch else None
    start = time.perf_counter()
    vx.tl.fit_vae(cells, batch, denoised=False, device="cpu", rng=seed, cure=cured, **arguments)
    seconds = time.perf_counter() - start
    vx.tl.log_likelihood(test, cells, n_samples=N_SAMPLES, device="cpu")
    vx.tl.encode(everyone, cells, device="cpu") if cells is not everyone else None
    mean_nd, var_nd = everyone.obsm["X_vae"], everyone.obsm["X_vae_var"]
    found = cells.uns["vae"]["diagnostics"]
    numbers = {name: float(value) for name, value in found.items() if isinstance(value, (int, float, np.number))}
    record = {k: np.asarray(v).tolist() for k, v in found.get("cure", {}).items()}
    return {
        "set": name,
        "regime": regime,
        "seed": seed,
        "cured": cured,
        "seconds": seconds,
        "iwae": float(test.obs["vae_log_likelihood"].mean()),
        "elbo": float(test.obs["vae_elbo"].mean()),
        "information": vx.metrics.mutual_information(mean_nd, var_nd),
        "active": int(vx.metrics.active_units(mean_nd).sum()),
        "n_latent": mean_nd.shape[1],
        "verdict": str(found["verdict"]),
        "numbers": numbers,
        "record": record,
    }


def report(known: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    """Make both tables: verdicts compared with the truth, and results of the cures."""
    rows = [row for row in known.values() if row["set"] in args.sets]
    reference = {(row["set"], row["seed"]): row for row in rows if row["regime"] == HEALTHY and not row["cured"]}
    table = []
    for row in rows:
        best = reference.get((row["set"], row["seed"]))
        if best is None or row["regime"] not in (HEALTHY, *args.regimes):
            continue
        loss = (row["iwae"] - best["iwae"]) / abs(best["iwae"])
        information = row["information"] / best["information"]
        table.append(
            {
                "set": row["set"],
                "regime": row["regime"],
                "seed": row["seed"],
                "cured": row["cured"],
                "iwae": 100 * loss,
                "information": information,
                "active": row["active"] / best["active"],
                "ill": loss < -MAX_LOSS or information < MIN_INFORMATION,
                "flagged": not row["verdict"].startswith(("healthy", "unused")),
                "verdict": row["verdict"].split(":", 1)[0],
            }
        )
    table = pd.DataFrame(table)
    asked = table[~table["cured"]]
    print("\nverdicts; IWAE in % of the healthy fit, information and active units as shares of the healthy fit (means)")
    groups = asked.groupby(["regime", "set"], sort=False)
    summary = groups.agg(
        n=("ill", "size"),
        iwae=("iwae", "mean"),
        information=("information", "mean"),
        active=("active", "mean"),
        ill=("ill", "sum"),
        flagged=("flagged", "sum"),
        missed=("ill", lambda x: int((x & ~asked.loc[x.index, "flagged"]).sum())),
        false=("ill", lambda x: int((~x & asked.loc[x.index, "flagged"]).sum())),
        verdicts=("verdict", lambda x: ", ".join(f"{v} {n}" for v, n in x.value_counts().items())),
    )
    print(summary.round(2).to_string())
    healthy = asked[asked["regime"] == HEALTHY]
    missed, false = int((asked["ill"] & ~asked["flagged"]).sum()), int((~asked["ill"] & asked["flagged"]).sum())
    print(
        f"\n{len(asked)} fits, {int(asked['ill'].sum())} ill: {missed} missed, {false} false alarms; of {len(healthy)} fits at the "
        f"defaults {int(healthy['flagged'].sum())} flagged, {int((healthy['flagged'] & ~healthy['ill']).sum())} of them not ill"
    )
    out: dict[str, Any] = {"fits": table.to_dict("records"), "missed": missed, "false": false}
    cured = table[table["cured"]]
    if len(cured):
        print("\ncured; IWAE in % of the healthy fit, information and active units as shares of the healthy fit")
        before = asked.set_index(["regime", "set", "seed"])
        rows = cured.set_index(["regime", "set", "seed"]).join(
            before[["iwae", "information", "active"]], rsuffix="_before"
        )
        rows["reached"] = (rows["iwae"] > -0.5) & (rows["information"] >= 0.8) & (rows["active"] >= 0.8)
        means = rows.groupby(["regime", "set"], sort=False)[
            ["iwae_before", "iwae", "information_before", "information", "active_before", "active", "reached"]
        ].mean()
        print(means.round(2).to_string())
        for key, row in known.items():
            if row["cured"] and row["set"] in args.sets and row["seed"] == args.seeds[0]:
                steps = zip(row["record"]["attempt"], row["record"]["change"], row["record"]["kept"], strict=True)
                path = "; ".join(f"{a} [{c}] {'kept' if k else 'not kept'}" for a, c, k in list(steps)[1:])
                print(f"  {key}: {path or 'nothing to try'} -> {row['verdict'].split(':', 1)[0]}")
        out["cures"] = rows.reset_index().to_dict("records")
    seconds = sum(row["seconds"] for row in known.values() if row["set"] in args.sets)
    print(f"\n{seconds:.0f} s of fitting; written to {save('collapse_' + '_'.join(args.sets), out)}")


if __name__ == "__main__":
    main()
