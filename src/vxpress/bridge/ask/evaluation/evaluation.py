"""``PerturbationEvaluation``, what :func:`vxpress.tl.evaluate_perturbation` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

SHOWN = ("score", "low", "high", "floor", "floor_score", "difference", "verdict", "ceiling", "calibrated")


@dataclass(frozen=True, repr=False)
class PerturbationEvaluation:
    """Scores of predicted perturbations, as :func:`vxpress.tl.evaluate_perturbation` returns them.

    Attributes
    ----------
    table
        Every score of every method and floor: one row per ``method``, ``group``, ``target``, set of ``genes`` and
        ``measure``. See :func:`vxpress.tl.evaluate_perturbation` for the columns.
    summary
        The same as means over groups and targets.
    verdicts
        One sentence per method.
    changes
        The measured and the predicted change of every gene, with Welch's ``t`` of the measured change and the
        ``rank`` of the gene by it; :func:`vxpress.pl.perturbation` draws them.
    params
        Settings of the call.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    verdicts: dict[str, str]
    changes: pd.DataFrame
    params: dict[str, Any]

    @property
    def verdict(self) -> str:
        """The verdicts on all methods, one per line."""
        return "\n".join(self.verdicts.values())

    def scores(self, measure: str | None = None, genes: str | None = None) -> pd.DataFrame:
        """Return the means over groups of one measure, one row per method and floor.

        Parameters
        ----------
        measure
            Name of the measure; by default the one of the verdict.
        genes
            Set of genes, ``"all"`` or for example ``"top50"``; by default the one of the verdict.

        Returns
        -------
        A table with the methods as index.

        Raises
        ------
        KeyError
            If there is no such measure for these genes.
        """
        measure = self.params["measure"] if measure is None else measure
        genes = self.params["genes"] if genes is None else genes
        keep = self.summary["measure"].eq(measure) & self.summary["genes"].eq(genes)
        if not keep.any():
            measures, sets = (list(dict.fromkeys(self.summary[name])) for name in ("measure", "genes"))
            here = list(dict.fromkeys(self.summary.loc[self.summary["measure"].eq(measure), "genes"]))
            found = f"it has {here}" if here else f"the measures are {measures}, for the genes {sets}"
            msg = f"There is no measure {measure!r} for the genes {genes!r}; {found}."
            raise KeyError(msg)
        return self.summary[keep].set_index("method")[["kind", *SHOWN]]

    def to_uns(self) -> dict[str, Any]:
        """Return everything as a dictionary of tables and texts for ``adata.uns``, which can be written to a file."""
        verdicts = pd.DataFrame({"method": list(self.verdicts), "verdict": list(self.verdicts.values())})
        verdicts.index = verdicts.index.astype(str)
        frames = {"table": self.table, "summary": self.summary, "changes": self.changes}
        written = {name: frame.set_axis(frame.index.astype(str)) for name, frame in frames.items()}
        return written | {"verdicts": verdicts, "params": dict(self.params)}

    def __repr__(self) -> str:
        shown = self.scores().drop(columns=["kind", "verdict"])
        head = f"{self.params['measure']}, genes: {self.params['genes']}"
        return f"{self.verdict}\n\n{head}\n{shown.to_string(float_format='{:.3f}'.format)}"

    def _repr_html_(self) -> str:
        """Show the verdicts and the table in a notebook."""
        import html

        lines = "<br>".join(html.escape(line) for line in self.verdicts.values())
        shown = self.scores().drop(columns="kind")
        return f"<p>{lines}</p>{shown.to_html(float_format='{:.3f}'.format)}"
