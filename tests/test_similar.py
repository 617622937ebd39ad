"""Names like one that was not found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import pytest

import vxpress as vx
from vxpress._similar import similar, similar_names

GENES = ["CD4", "CD3G", "CD3D", "LYZ-1", "LYZ", "MS4A1", "HLA-DRA"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lyz", ["LYZ", "LYZ-1"]),  # equal but for case, then longer ones
        ("CD3", ["CD3G", "CD3D", "CD4"]),
        ("MS4A", ["MS4A1"]),
        ("HLA.DRA", ["HLA-DRA"]),
        ("ENSG00000090382", []),
        ("", []),
    ],
)
def test_similar_names_are_found_in_order(name: str, expected: list[str]) -> None:
    assert similar(name, GENES) == expected


def test_the_sentence_is_empty_where_nothing_is_similar() -> None:
    assert similar_names(["nope"], GENES) == ""
    assert similar_names(["lyz", "hla-dra"], GENES) == " Similar names: 'LYZ', 'LYZ-1', 'HLA-DRA'."


@pytest.mark.parametrize(
    "call",
    [
        lambda adata, gene: vx.tl.denoise(adata, genes=[gene]),
        lambda adata, gene: vx.tl.interpolate(adata, "group_0", "group_1", groupby="group", genes=[gene]),
        lambda adata, gene: vx.pl.latent(adata, color=gene, show=False),
    ],
)
def test_calls_that_do_not_know_a_gene_name_similar_ones(fitted: ad.AnnData, call: Callable[..., Any]) -> None:
    gene = fitted.var_names[3]
    with pytest.raises(KeyError, match=f"Similar names: '{gene}'"):
        call(fitted, gene.upper())
