"""Shallow cells, and data sets of few cells."""

from __future__ import annotations

from typing import Any

from _tables.registry import REPORTED, Row, mean, number, results, table

SCORES = {
    "shallow": ("balanced accuracy, 100 to 300 molecules", 3),
    "full depth": ("balanced accuracy, full depth", 3),
    "purity": ("purity of the fitted cells", 3),
    "iwae": ("IWAE, nats per test cell", 1),
}
OTHERS = {"PCA": "PCA", "scvi": "scvi-tools", "joint embedding": "scvi-tools, joint embedding"}
FEW = (
    "pbmc68k_reduced",
    "pancreas",
    "rnamix",
    "pbmc3k, 300",
    "pbmc3k, 1,000",
    "pbmc_3studies, 300",
    "pbmc_3studies, 1,000",
)


def difference(ours: dict[str, Any], other: dict[str, Any], metric: str, digits: int) -> str:
    """Format a paired difference with its 95 % interval."""
    from _paired import paired

    found = paired(ours, other, metric)
    if found is None:
        return ""
    half = f" ± {found.half:.{digits}f}" if found.n > 1 else ""
    return f"{number(found.value, digits, sign=True)}{half}"


@table(
    "shallow",
    *(("shallow", name) for name in REPORTED),
    command="python benchmarks/shallow.py",
    kinds=["likelihood", "latent"],
)
def shallow() -> list[Row]:
    """Accuracy of the types of shallow cells, with and without thinning."""
    shown = [key for key in OTHERS if all(key in results("shallow")[name] for name in REPORTED)]
    rows: list[Row] = [
        ["data set", "score", "thinning", "no thinning", "difference (95&nbsp;%)", *(OTHERS[key] for key in shown)]
    ]
    for name in REPORTED:
        methods = results("shallow")[name]
        for metric, (words, digits) in SCORES.items():
            values = [methods[key]["scores"].get(metric) for key in ("thinning", "no thinning", *shown)]
            thinned, without, *others = ["" if v is None else number(mean(v), digits) for v in values]
            gain = difference(methods["thinning"], methods["no thinning"], metric, digits)
            rows.append([name, words, thinned, without, gain, *others])
    return rows


@table(
    "few_cells",
    *(("few_cells", name) for name in FEW),
    command="python benchmarks/few_cells.py",
    kinds=["likelihood", "latent"],
)
def few_cells() -> list[Row]:
    """Few cells: the defaults, and their differences from other methods."""
    rows: list[Row] = [
        ["data set", "score", "defaults", "less PCA", "less Harmony", "less the defaults of 0.1.0"],
    ]
    for name in FEW:
        methods = results("few_cells")[name]
        for metric, digits in (("purity", 3), ("ARI best", 3), ("elbo", 1), ("iwae", 1)):
            ours = methods["defaults"]
            others = [
                difference(ours, methods[key], metric, digits) if key in methods else ""
                for key in ("PCA", "Harmony", "0.1")
            ]
            shown = {"purity": "purity", "ARI best": "ARI, best resolution", "elbo": "ELBO", "iwae": "IWAE"}[metric]
            rows.append([name, shown, number(mean(ours["scores"][metric]), digits), *others])
    return rows
