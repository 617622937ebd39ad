"""Compare generated cells with real cells that no fit has seen.

    python benchmarks/generation.py --sets pbmc3k kang pbmc_3studies --seeds 0 1 2 3 4
    python benchmarks/generation.py --table
    python benchmarks/generation.py --timing --threads 2

Half of the cells are held out, the rest is fitted. Generated cells are compared with held-out ones, pooled (1,000 of each, or
as many as are held out) and within each type with 200 held-out cells or more (200 of each). For comparison, training cells
(real against real, the best possible) and counts of independent genes, negative binomial per type (the worst), are scored.
Results are stored per data set and seed, so that an interrupted run continues.
"""

from __future__ import annotations

import json
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _sets import SETS, labelled
from _speed import RESULTS, machine, save, set_threads
from _versions import stamp
from scipy import sparse, stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

import vxpress as vx

FOLDER = RESULTS / "generation"
N_POOLED, N_TYPE, MAX_CELLS, N_GENES = 1_000, 200, 4_000, 2_000
POOLED = ("auroc_counts", "auroc_normalized", "lisi", "slope", "memorized", "memorized_upper", "energy")
BY_TYPE = ("type_auroc_counts", "type_auroc_normalized")


@dataclass(frozen=True)
class Row:
    """A way to generate cells: settings of the fit, prior, and use of labels."""

    fit: str
    prior: str | None = None
    by_type: bool = False


# with "covariate", the type is a covariate of the decoder
FITS: dict[str, dict[str, Any]] = {
    "default": {},
    "narrow": {"n_hidden": 32},
    "covariate": {"n_hidden": 32, "categorical_covariate_keys": ["type"]},
}
ROWS = {
    "default, N(0,I)": Row("default"),
    "default, mixture": Row("default", "mixture"),
    "narrow, N(0,I)": Row("narrow"),
    "narrow, mixture": Row("narrow", "mixture"),
    "narrow, mixture | type": Row("narrow", "mixture", by_type=True),
    "type as covariate, N(0,I)": Row("covariate", by_type=True),
}
FLOOR, RESAMPLED, CEILING = "real against real", "posterior resampling", "independent genes"


def halves(name: str, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Return training and held-out cells with a known type, on genes chosen on the training cells."""
    adata = labelled(name)
    order = np.random.default_rng(seed).permutation(adata.n_obs)[:MAX_CELLS]
    train, held_out = (adata[np.sort(part)].copy() for part in np.array_split(order, 2))
    sc.pp.filter_genes(train, min_cells=3)
    if train.n_vars > N_GENES:
        batch = "batch" if "batch" in train.obs else None
        vx.pp.highly_variable_genes(train, n_top_genes=N_GENES, batch_key=batch)
        train = train[:, train.var["highly_variable"]].copy()
    held_out = held_out[:, train.var_names].copy()
    for part in (train, held_out):
        sc.pp.filter_cells(part, min_counts=5)
    return train, held_out


def normalized(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Normalise to counts per 10,000, without a logarithm."""
    total = np.asarray(x.sum(1)).reshape(-1)
    return (sparse.diags(1e4 / np.maximum(total, 1.0)) @ sparse.csr_matrix(x, dtype=np.float64)).tocsr()


class Judge:
    """Real cells that generated ones are compared with, fixed per data set and seed."""

    def __init__(self, train: ad.AnnData, held_out: ad.AnnData, seed: int, trees: int) -> None:
        self.train, self.held_out, self.seed, self.trees = train, held_out, seed, trees
        self.n = min(N_POOLED, held_out.n_obs)
        self.norm = {"train": normalized(train.X), "held_out": normalized(held_out.X)}
        log = self.norm["train"].log1p().toarray()
        self.pca = PCA(min(50, *log.shape), random_state=0).fit(log)
        self.place = {name: self.pca.transform(x.log1p().toarray()) for name, x in self.norm.items()}
        self.classifier = LogisticRegression(max_iter=500).fit(self.place["train"], train.obs["type"].astype(str))
        counts = held_out.obs["type"].value_counts()
        in_train = train.obs["type"].value_counts()
        self.types = sorted(t for t in counts.index if counts[t] >= N_TYPE and in_train[t] >= N_TYPE)

    def pooled(self, x: sparse.csr_matrix, types: np.ndarray | None) -> dict[str, float]:
        """Score at least ``n`` generated cells; their types are predicted if they were not given."""
        rng = np.random.default_rng(self.seed)
        rows = rng.permutation(self.held_out.n_obs)[: self.n]
        real, x_norm = self.held_out.X[rows], normalized(x)
        place = self.pca.transform(x_norm.log1p().toarray())
        real_types = self.held_out.obs["type"].astype(str).to_numpy()
        if types is None:
            types, real_types = self.classifier.predict(place), self.classifier.predict(self.place["held_out"])
        slope = vx.metrics.fold_change_slope(
            self.norm["held_out"],
            real_types,
            x_norm,
            types,
            select_ng=self.norm["train"],
            select_groups=self.train.obs["type"].astype(str).to_numpy(),
        )
        memorized = vx.metrics.memorization(place[: self.n], self.place["train"], self.place["held_out"])
        auroc = (
            vx.metrics.two_sample_auroc(a, b[: self.n], n_trees=self.trees, rng=self.seed)
            for a, b in ((real, x), (self.norm["held_out"][rows], x_norm))
        )
        found = (
            *auroc,
            vx.metrics.mixing_lisi(self.place["held_out"][rows], place[: self.n]),
            slope.slope,
            memorized.share,
            memorized.upper,
            vx.metrics.energy_distance(self.place["held_out"][rows], place[: self.n]),
        )
        return dict(zip(POOLED, map(float, found), strict=True))

    def by_type(self, make: Callable[[str], sparse.csr_matrix]) -> dict[str, dict[str, float]]:
        """Compute the AUROC within each type."""
        out = {}
        for name in self.types:
            rows = np.flatnonzero((self.held_out.obs["type"] == name).to_numpy())
            rows = np.random.default_rng(self.seed).permutation(rows)[:N_TYPE]
            x = make(name)[:N_TYPE]
            pairs = ((self.held_out.X[rows], x), (normalized(self.held_out.X[rows]), normalized(x)))
            scores = [vx.metrics.two_sample_auroc(a, b, n_trees=self.trees, rng=self.seed) for a, b in pairs]
            out[name] = dict(zip(BY_TYPE, scores, strict=True))
        return out

    def floor(self) -> dict[str, Any]:
        """Score training cells instead of generated ones.

        Scores in principal components use two halves of the held-out cells instead. The components were fitted on the
        training cells, which therefore vary more along them than new cells of the same distribution.
        """
        order = np.random.default_rng(self.seed + 1).permutation(self.train.n_obs)
        types = self.train.obs["type"].astype(str).to_numpy()
        found = self.pooled(self.train.X[order], types[order])
        halves = np.array_split(np.random.default_rng(self.seed).permutation(self.held_out.n_obs), 2)
        real_types = self.held_out.obs["type"].astype(str).to_numpy()
        slope = vx.metrics.fold_change_slope(
            self.norm["held_out"][halves[0]],
            real_types[halves[0]],
            self.norm["held_out"][halves[1]],
            real_types[halves[1]],
            select_ng=self.norm["train"],
            select_groups=types,
        )
        x, y = (self.place["held_out"][half] for half in halves)
        memorized = vx.metrics.memorization(x, self.place["train"], y)
        n = min(len(x), len(y))
        found |= {
            "slope": slope.slope,
            "memorized": memorized.share,
            "memorized_upper": memorized.upper,
            "lisi": vx.metrics.mixing_lisi(x[:n], y[:n]),
            "energy": vx.metrics.energy_distance(x, y),
        }
        return {"pooled": found, "types": self.by_type(lambda t: self.train.X[order[types[order] == t]])}


def independent_genes(train: ad.AnnData, types: np.ndarray, seed: int) -> sparse.csr_matrix:
    """Draw counts of genes that are independent within a type: negative binomial with the moments of its training cells."""
    rng = np.random.default_rng(seed)
    out = np.zeros((len(types), train.n_vars), dtype=np.float32)
    for name in np.unique(types):
        rows = np.flatnonzero(types == name)
        x = train.X[(train.obs["type"] == name).to_numpy()].toarray().astype(np.float64)
        library = x.sum(1, keepdims=True)
        mean = library * x.sum(0) / library.sum()
        over = ((x - mean) ** 2 - mean).sum(0) / np.maximum((mean**2).sum(0), 1e-12)
        theta = 1.0 / np.clip(over, 1e-3, 1e3)
        rate = mean[rng.integers(len(x), size=len(rows))]
        out[rows] = rng.poisson(rate * rng.gamma(theta, 1.0 / theta, size=rate.shape))
    return sparse.csr_matrix(out)


class Maker:
    """Fits, each made once, and cells generated from them."""

    def __init__(self, train: ad.AnnData, seed: int) -> None:
        self.train, self.seed = train, seed
        self.fits: dict[str, ad.AnnData] = {}

    def fitted(self, name: str) -> ad.AnnData:
        """Return the training cells with this fit."""
        if name not in self.fits:
            adata = self.train.copy()
            batch = "batch" if "batch" in adata.obs else None
            vx.tl.fit_vae(adata, batch, rng=self.seed, denoised=False, **FITS[name])
            self.fits[name] = adata
        return self.fits[name]

    def with_prior(self, row: Row) -> ad.AnnData:
        """Return the same with a learned prior."""
        adata = self.fitted(row.fit)
        if row.prior is None:
            return adata
        condition = "type" if row.by_type else None
        return vx.tl.fit_prior(adata, row.prior, condition_key=condition, rng=self.seed, copy=True)

    def cells(self, adata: ad.AnnData, row: Row, types: np.ndarray | None, n: int, n_neighbors: int | None) -> Any:
        """Generate counts of new cells, by type if the row uses types."""
        if not row.by_type:
            return vx.tl.generate(adata, n, rng=self.seed, n_neighbors=n_neighbors).X
        asked = {"labels": types} if row.prior else {"covariates": {"type": types}}
        return vx.tl.generate(adata, n, rng=self.seed, n_neighbors=n_neighbors, **asked).X


def run(name: str, seed: int, args: Namespace) -> dict[str, Any]:
    """Compute all rows of one data set and seed."""
    train, held_out = halves(name, seed)
    judge, maker = Judge(train, held_out, seed, args.trees), Maker(train, seed)
    path = args.out / f"{name}-{seed}.json"
    done = json.loads(path.read_text()) if path.exists() else {"rows": {}, "machine": machine()}
    done |= {"n_train": train.n_obs, "n": judge.n, "n_genes": train.n_vars, "trees": args.trees, "types": judge.types}
    # types of the same number of training cells
    types = np.random.default_rng(seed).choice(train.obs["type"].astype(str).to_numpy(), judge.n)

    def keep(label: str, found: dict[str, Any], seconds: float) -> None:
        done["rows"][label] = found | {"seconds": seconds}
        path.write_text(json.dumps(done, indent=1) + "\n")
        stamp(f"generation/{path.stem}", ("rows",))
        print(f"{name} {seed} {label}: " + ", ".join(f"{k} {v:.3f}" for k, v in found["pooled"].items()), flush=True)

    for label in (FLOOR, CEILING, RESAMPLED, *ROWS):
        if label in done["rows"] or (args.rows and label not in args.rows):
            continue
        start = time.perf_counter()
        if label == FLOOR:
            found = judge.floor()
        elif label == CEILING:
            found = {
                "pooled": judge.pooled(independent_genes(train, types, seed), types),
                "types": judge.by_type(lambda t: independent_genes(train, np.full(N_TYPE, t), seed)),
            }
        elif label == RESAMPLED:
            drawn = vx.tl.sample(maker.fitted("narrow"), n_samples=2, rng=seed)[: train.n_obs]
            order = np.random.default_rng(seed).permutation(train.n_obs)
            drawn_types = train.obs["type"].astype(str).to_numpy()[order]
            x = drawn.X[order]
            found = {
                "pooled": judge.pooled(x, drawn_types),
                "types": judge.by_type(lambda t, x=x, of=drawn_types: x[of == t]),
            }
        else:
            row = ROWS[label]
            adata = maker.with_prior(row)
            # by type, as in the protocol: size factor and batch of any training cell of the type
            k = None if row.by_type else 15
            made = maker.cells(adata, row, types, judge.n, k)
            found = {"pooled": judge.pooled(made, types if row.by_type else None), "types": {}}
            if row.by_type:
                found["types"] = judge.by_type(
                    lambda t, a=adata, r=row: maker.cells(a, r, np.full(N_TYPE, t), N_TYPE, None)
                )
        keep(label, found, time.perf_counter() - start)
    return done


def table(out: Path) -> dict[str, Any]:
    """Print and return means over seeds per data set with intervals, and differences."""
    summary: dict[str, Any] = {}
    files = sorted(out.glob("*.json"))
    for name in sorted({path.stem.rsplit("-", 1)[0] for path in files}):
        runs = [json.loads(path.read_text()) for path in files if path.stem.rsplit("-", 1)[0] == name]
        print(f"\n{name}: {len(runs)} seed(s), {runs[0]['n']} against {runs[0]['n']} cells, {runs[0]['n_genes']} genes")
        rows = {}
        for label in dict.fromkeys(label for found in runs for label in found["rows"]):
            have = [found["rows"][label] for found in runs if label in found["rows"]]
            values = {k: [row["pooled"][k] for row in have] for k in POOLED}
            for k in BY_TYPE:
                per_seed = [np.mean([t[k] for t in row["types"].values()]) for row in have if row["types"]]
                values |= {k: [float(v) for v in per_seed]}
            rows[label] = {k: _interval(v) for k, v in values.items() if v}
        print(
            pd.DataFrame({label: {k: v["text"] for k, v in row.items()} for label, row in rows.items()}).T.to_string()
        )
        summary[name] = rows | {"differences": differences(runs)}
    return summary


# learned priors compared with N(0, I) of the same model, and the type in the prior with the type in the decoder
COMPARED = {
    "default, mixture": "default, N(0,I)",
    "narrow, mixture": "narrow, N(0,I)",
    "narrow, mixture | type": "type as covariate, N(0,I)",
}


def differences(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute by how much one row is better than another, and how far its AUROC is above real cells, paired by seed.

    Positive is better: a lower AUROC, energy distance or share memorised, a higher LISI, a slope closer to 1.
    """

    def score(row: dict[str, Any], metric: str) -> float:
        if metric in BY_TYPE:
            return -float(np.mean([t[metric] for t in row["types"].values()]))
        value = row["pooled"][metric]
        return {"lisi": value, "slope": -abs(value - 1.0)}.get(metric, -value)

    found: dict[str, Any] = {}
    pairs = [(label, other, POOLED + BY_TYPE) for label, other in COMPARED.items()]
    pairs += [(label, FLOOR, (*POOLED[:2], *BY_TYPE)) for label in ROWS]
    for label, other, metrics in pairs:
        both = [(r["rows"][label], r["rows"][other]) for r in runs if {label, other} <= set(r["rows"])]
        if not both:
            continue
        gains = {
            metric: _interval([score(a, metric) - score(b, metric) for a, b in both])
            for metric in metrics
            if metric in POOLED or all(a["types"] and b["types"] for a, b in both)
        }
        found[f"{label} over {other}"] = gains
    print("better by (positive is better), paired by seed:")
    print(pd.DataFrame({pair: {k: v["text"] for k, v in row.items()} for pair, row in found.items()}).T.to_string())
    return found


def _interval(values: list[float]) -> dict[str, Any]:
    """Compute the mean and the half-width of its 95 % interval over seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "text": f"{mean:.3f}", "all": values}
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "half_width": half, "text": f"{mean:.3f} ± {half:.3f}", "all": values}


def timing() -> dict[str, float]:
    """Time the generation of 10,000 cells x 2,000 genes from each kind of prior; aim: 10 s."""
    adata = vx.datasets.simulate(3_000, 2_000, rng=0)
    vx.tl.fit_vae(adata, denoised=False, device="cpu")
    seconds = {}
    for prior in ("normal", "mixture", "vamp", "flow", "diffusion", "flow_matching"):
        fitted = adata if prior == "normal" else vx.tl.fit_prior(adata, prior, copy=True)
        start = time.perf_counter()
        vx.tl.generate(fitted, 10_000)
        seconds[prior] = time.perf_counter() - start
        print(f"10,000 cells x 2,000 genes, {prior}: {seconds[prior]:.1f} s", flush=True)
    return seconds


def main() -> None:
    """Compute missing results, then print the table."""
    options = ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report" and v.labels]
    )
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    options.add_argument("--rows", nargs="+", choices=[FLOOR, CEILING, RESAMPLED, *ROWS])
    options.add_argument("--trees", type=int, default=100)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, default=FOLDER)
    options.add_argument("--table", action="store_true", help="only print the table of stored results")
    options.add_argument("--timing", action="store_true", help="only time the generation of 10,000 cells")
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(args.threads)
    sc.settings.verbosity = 0
    if args.timing:
        print(f"written to {save('generation_timing', {'machine': machine(), 'seconds': timing()})}")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.table:
        for seed in args.seeds:
            for name in args.sets:
                run(name, seed, args)
    summary = table(args.out)
    if args.out == FOLDER:
        print(f"\nwritten to {save('generation', {'summary': summary})}")


if __name__ == "__main__":
    main()
