"""Define what counts as no change: a fixed share of the molecules, the typical gene, or chosen genes; warn if it matters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from scanpy import logging as logg

from vxpress.core.inference.composition import Displacement, typical_log2_fold
from vxpress.core.inference.differential import Contrast, Evidence, Ints

RelativeTo: TypeAlias = str | Sequence[str]
LIBRARY, MEDIAN = "library", "median"
# a few genes may shift the log2 fold changes of all others by this much without a warning; the largest shift seen in
# clusters of PBMCs was 0.12
MAX_SHIFT = 0.2
SHOWN = 3


def requested_relative_to(relative_to: RelativeTo) -> str | tuple[str, ...]:
    """Return ``"library"``, ``"median"`` or the names of genes; whether the genes exist is checked later."""
    if isinstance(relative_to, str):
        if relative_to in (LIBRARY, MEDIAN):
            return relative_to
        msg = f"relative_to={relative_to!r} was given; 'library', 'median' or a list of genes is expected, for example relative_to=[{relative_to!r}]."
        raise ValueError(msg)
    if not isinstance(relative_to, Iterable):
        msg = f"relative_to={relative_to!r} was given; 'library', 'median' or a list of genes is expected."
        raise TypeError(msg)
    names = tuple(dict.fromkeys(str(name) for name in relative_to))
    if not names:
        msg = "relative_to= names no gene; one or more are expected, or 'median'."
        raise ValueError(msg)
    return names


def reference_genes(relative_to: str | tuple[str, ...], genes: np.ndarray) -> Ints | None:
    """Return the positions of the named genes among the ranked genes; None if ``relative_to`` names no genes."""
    if isinstance(relative_to, str):
        return None
    place = {str(name): i for i, name in enumerate(genes)}
    unknown = [name for name in relative_to if name not in place]
    if unknown:
        msg = f"relative_to= names {unknown[:5]}, which are not among the {len(genes)} ranked genes (for example {str(genes[0])!r})."
        raise KeyError(msg)
    return np.array([place[name] for name in relative_to], dtype=np.int64)


def shift_of(
    relative_to: str | tuple[str, ...], genes: Ints | None, evidence: Evidence, contrast: Contrast, name: str
) -> float:
    """Return the log2 fold change that counts as no change in a comparison."""
    if relative_to == LIBRARY:
        return 0.0
    found = typical_log2_fold(evidence, contrast, genes)
    if np.isfinite(found):
        return found
    what = (
        "too few genes have 50 molecules or more to take their median"
        if genes is None
        else "the named genes have no molecule on one side"
    )
    msg = f"relative_to=: in the comparison of {name!r} {what}. Name other genes, or omit relative_to=."
    raise ValueError(msg)


def warn_composition(found: Mapping[str, Displacement], genes: np.ndarray, delta: float) -> None:
    """Warn if a few genes shift the fold changes of all others by more than the threshold and more than is usual."""
    large = {name: one for name, one in found.items() if abs(one.log2) > max(delta, MAX_SHIFT)}
    if not large:
        return
    parts = []
    for name, one in list(large.items())[:SHOWN]:
        shown = ", ".join(str(genes[g]) for g in one.gene_k[:SHOWN])
        n = len(one.gene_k)
        more = f" and {n - SHOWN} more" if n > SHOWN else ""
        parts.append(
            f"{name!r} ({shown}{more} make up {one.share_up:.0%} of its molecules and {one.share_down:.0%} of the others': "
            f"{one.log2:+.2f})"
        )
    rest = f" and {len(large) - SHOWN} more" if len(large) > SHOWN else ""
    logg.warning(
        "Shares of molecules sum to one, so the few genes that differ most shift the log2 fold changes of all other genes in "
        f"{'; '.join(parts)}{rest}. Many genes may look {'down' if next(iter(large.values())).log2 < 0 else 'up'} for that reason alone. "
        "relative_to='median' compares genes with the typical gene instead, relative_to=[...] with chosen genes."
    )
