"""One fit with an optional condition, compared with the two fits that it replaces."""

from __future__ import annotations

from typing import Any

from _tables.registry import Row, mean, number, pick, results, student, table

NAME = "kang"
# what one would fit instead, by view
INSTEAD = {"removed": "covariate", "kept": "left out"}
SHOWN = {
    "optional": "one fit, condition optional",
    "covariate": "condition as covariate",
    "left out": "without the condition",
}
VIEWS = {"removed": "effect removed", "kept": "effect kept"}
# aims: highest share of neighbors of the same condition, lowest share, lowest purity, lowest change of the bound in percent
REMOVED, KEPT, PURITY, LOSS = 0.55, 0.95, 0.91, -0.2


def donors() -> list[bool]:
    """Return without and with the donor as batch, as far as both were measured."""
    return sorted({row["donor"] for row in results("dial")[NAME]})


def found(fit: str, view: str, *, donor: bool) -> list[dict[str, Any]]:
    """Return the scores of a view by seed."""
    return sorted(pick(results("dial")[NAME], fit=fit, view=view, donor=donor), key=lambda row: row["seed"])


def with_interval(values: list[float], digits: int = 3, *, sign: bool = False) -> str:
    """Format a mean over seeds with half its 95 % interval."""
    return f"{number(mean(values), digits, sign=sign)} ± {student(values):.{digits}f}"


def gain(view: str, score: str, *, donor: bool) -> list[float]:
    """Return the change of a bound from the separate fit to the one fit in percent, by seed."""
    pairs = zip(found("optional", view, donor=donor), found(INSTEAD[view], view, donor=donor), strict=True)
    return [100 * (one[score] - other[score]) / abs(other[score]) for one, other in pairs]


@table("dial", ("dial", NAME), command="python benchmarks/dial.py --threads 1", kinds=["likelihood", "latent"])
def dial() -> list[Row]:
    """Neighbors and likelihood of each view."""
    rows: list[Row] = [
        ["donor", "view", "fit", "same condition", "same type", "IWAE", "ELBO, % of the separate fit", "IWAE, %"]
    ]
    for donor in donors():
        for view, words in VIEWS.items():
            for fit in ("optional", INSTEAD[view]):
                part = found(fit, view, donor=donor)
                changes = [
                    with_interval(gain(view, score, donor=donor), 2, sign=True) if fit == "optional" else ""
                    for score in ("elbo", "iwae")
                ]
                cells = [with_interval([row[key] for row in part]) for key in ("same condition", "purity")]
                bound = with_interval([row["iwae"] for row in part], 1)
                rows.append(["batch" if donor else "", words, SHOWN[fit], *cells, bound, *changes])
    return rows


def summary() -> list[tuple[str, str, list[bool]]]:
    """Return question, result and whether each aim was met, for the first page."""
    views = [(view, donor) for view in VIEWS for donor in donors()]
    same = {at: mean(row["same condition"] for row in found("optional", at[0], donor=at[1])) for at in views}
    purity = [mean(row["purity"] for row in found("optional", view, donor=donor)) for view, donor in views]
    change = [mean(gain(view, "iwae", donor=donor)) for view, donor in views]
    removed, kept = ([same[view, donor] for donor in donors()] for view in VIEWS)
    return [
        (
            "One fit with the condition removed and kept: neighbors of the same condition",
            f"{number(max(removed), 2)} where it is removed, {number(min(kept), 2)} where it is kept; {number(min(purity), 2)} of the same type",
            [max(removed) <= REMOVED, min(kept) >= KEPT, min(purity) >= PURITY],
        ),
        (
            "The same, held-out likelihood compared with separate fits",
            f"IWAE {number(min(change), 2, sign=True)} to {number(max(change), 2, sign=True)} %",
            [value >= LOSS for value in change],
        ),
    ]
