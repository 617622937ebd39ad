"""Fits that are killed and continued."""

from __future__ import annotations

from _tables.registry import Row, number, results, table

# kills that the aim asks for
LEAST = 100


def summary() -> tuple[str, str, str]:
    """Return the line of the first page: question, result and verdict."""
    found = results("kills")["kills"]
    phases = found["phases"].values()
    n_kills, n_damaged = (sum(counts.get(name, 0) for counts in phases) for name in ("kills", "damaged"))
    met = n_kills >= LEAST and n_damaged == 0 and found["same"] == found["fits"]
    return (
        "Kills at random moments of training and writing",
        f"{n_kills} kills, {n_damaged} damaged files; {found['same']} of {found['fits']} fits continued to the same bits",
        "met" if met else "**missed**",
    )


@table("kills", ("kills", "kills"), command="python benchmarks/kills.py")
def kills() -> list[Row]:
    """Kills by the moment at which they hit, and what was left."""
    found = results("kills")["kills"]
    rows: list[Row] = [["the process was killed", "kills", "damaged files", "output absent until the next call"]]
    total = [0, 0, 0]
    for phase, counts in found["phases"].items():
        values = [counts.get(name, 0) for name in ("kills", "damaged", "absent")]
        total = [sum(pair) for pair in zip(total, values, strict=True)]
        rows.append([phase, *(number(value, 0) for value in values)])
    return [*rows, ["all", *(number(value, 0) for value in total)]]


@table("kills_fits", ("kills", "kills"), command="python benchmarks/kills.py")
def kills_fits() -> list[Row]:
    """The fits that were killed, and their results."""
    found = results("kills")["kills"]
    return [
        ["", "found"],
        ["fits that were killed, some repeatedly", number(found["fits"], 0)],
        ["of these, continued to the bits of a fit that was not killed", number(found["same"], 0)],
        ["files left behind after the last call", number(found["leftovers"], 0)],
        ["steps of a fit of two models", number(found["steps"], 0)],
        ["steps lost by a kill, at most", number(found["most steps lost"], 0)],
        ["steps lost by a kill, mean", number(found["mean steps lost"], 2)],
    ]
