"""Shallow cells."""

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
