"""Fits of several modalities: simulated RNA with ATAC."""

from __future__ import annotations

from typing import Any

from _tables.registry import Row, mean, mean_range, number, results, table

ATAC, COMMAND = "multiome", "python benchmarks/multiome.py"
AGREEMENT = {"nmi": "NMI", "ari": "ARI", "neighbors": "neighbors of the same type", "silhouette": "silhouette"}


def seeds(name: str) -> list[dict[str, Any]]:
    """Return the results of each seed."""
    return [found for key, found in results(name).items() if key.isdigit()]


def shown(values: list[float], digits: int = 3) -> str:
    """Format the mean over seeds, with the range if there are several."""
    return mean_range(values, digits) if len(values) > 1 else number(values[0], digits)


@table("modalities-atac", (ATAC, ""), command=COMMAND, kinds=["likelihood", "latent"])
def atac() -> list[Row]:
    """Agreement of the joint latent space and of either alone, for cells with both modalities."""
    fits = {"joint": "RNA and ATAC", "rna": "RNA alone", "atac": "ATAC alone"}
    out: list[Row] = [["fit", *AGREEMENT.values()]]
    for fit, text in fits.items():
        values = [[found["agreement"][fit][name] for found in seeds(ATAC)] for name in AGREEMENT]
        out.append([text, *(shown(value) for value in values)])
    return out


@table("modalities-imputed", (ATAC, ""), command=COMMAND, kinds=["likelihood"])
def imputed() -> list[Row]:
    """Squared errors of imputed log shares and of the batch mean."""
    keys = ("squared error", "squared error of the batch mean", "explained", "correlation within batches")
    out: list[Row] = [
        ["imputed", "squared error", "of the batch mean", "share explained", "correlation within batches"]
    ]
    for name, text in (("imputed rna", "RNA"), ("imputed atac", "ATAC")):
        out.append([text, *(shown([found[name][key] for found in seeds(ATAC)]) for key in keys)])
    return out


def met_atac() -> list[bool]:
    """Return for each seed whether the joint space is better than either alone, and both modalities are imputed above the floor."""
    out = []
    for found in seeds(ATAC):
        joint, *alone = (found["agreement"][fit] for fit in ("joint", "rna", "atac"))
        better = all(joint[name] > one[name] for one in alone for name in ("nmi", "neighbors"))
        out.append(better and all(found[f"imputed {name}"]["explained"] > 0 for name in ("rna", "atac")))
    return out


def summary_atac() -> str:
    """Return the result for the first page."""
    nmi = [mean(found["agreement"][fit]["nmi"] for found in seeds(ATAC)) for fit in ("joint", "rna", "atac")]
    explained = [mean(found[f"imputed {name}"]["explained"] for found in seeds(ATAC)) for name in ("rna", "atac")]
    return "NMI {:.2f}, RNA alone {:.2f}, ATAC alone {:.2f}; imputed RNA explains {:.0%} and ATAC {:.0%} of the variance beyond the batch mean".format(
        *nmi, *explained
    ).replace("%", "&nbsp;%")
