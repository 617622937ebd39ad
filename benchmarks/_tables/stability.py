"""Stability: neighbours and clusters of fits from different seeds."""

from __future__ import annotations

from typing import Any

from _tables.registry import REPORTED, Row, mean, number, ranged, results, table

SOURCE = ("stability", "sets")
COMMAND = "python benchmarks/stability.py --threads 1"
METHODS = {
    "default, 1": "defaults",
    "default, 3": "defaults, `n_fits=3`",
    "likelihood, 1": '`preset="likelihood"`',
    "likelihood, 3": '`preset="likelihood"`, `n_fits=3`',
    "scvi": "scvi-tools",
    "harmony": "Harmony",
    "pca": "PCA",
}
SETTINGS = {"default": "defaults", "likelihood": '`preset="likelihood"`'}


def sets() -> dict[str, Any]:
    """Return the results by data set."""
    found = results("stability")["sets"]
    return {name: found[name] for name in REPORTED if name in found}


@table("stability", SOURCE, command=COMMAND, kinds=["latent"])
def stability() -> list[Row]:
    """Shared neighbours, agreement of clusters, and purity by method."""
    rows: list[Row] = [["data set", "embedding", "seeds", "shared neighbours", "ARI of clusters", "purity", "clusters"]]
    for name, found in sets().items():
        for method, shown in METHODS.items():
            if method not in found["methods"]:
                continue
            scores = found["methods"][method]
            spread = [
                f"{number(mean(scores[key]), 3)} ({ranged(min(scores[key]), max(scores[key]), 3)})"
                if len(set(scores[key])) > 1
                else number(scores[key][0], 3)
                for key in ("shared", "clusters", "purity")
            ]
            # one embedding was scored twice for a method without a seed
            seeds = "none" if method == "pca" else str(len(scores["purity"]))
            rows.append([name, shown, seeds, *spread, number(mean(scores["n_clusters"]), 1)])
    return rows


@table("stability-gain", SOURCE, command=COMMAND, kinds=["latent", "time"])
def gain() -> list[Row]:
    """Differences of three fits from one, and what they cost."""
    rows: list[Row] = [["data set", "settings", "shared neighbours", "ARI of clusters", "purity", "times a fit"]]
    for name, found in sets().items():
        for setting, shown in SETTINGS.items():
            if setting not in found["gain"]:
                continue
            cells = [
                f"{number(found['gain'][setting][key]['value'], 3, sign=True)} ± {found['gain'][setting][key]['half']:.3f}"
                for key in ("shared", "clusters", "purity")
            ]
            rows.append([name, shown, *cells, number(mean(found["times"][setting]), 2)])
    return rows
