"""The README holds what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import scanpy as sc

import vxpress as vx

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def nothing_shown() -> Iterator[None]:
    mpl.use("Agg")
    before = sc.settings.autoshow
    sc.settings.autoshow = False
    yield
    sc.settings.autoshow = before
    plt.close("all")


def test_every_image_is_there():
    images = re.findall(r"!\[[^\]]*\]\(([^)\s]+)", README) + re.findall(r"<img[^>]+src=\"([^\"]+)\"", README)
    assert images
    assert [image for image in images if not image.startswith("https://") and not (ROOT / image).is_file()] == []


def test_every_page_linked_is_there():
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s#]+)", README)
    assert links
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_the_first_example_runs(tmp_path, monkeypatch, nothing_shown):
    monkeypatch.chdir(tmp_path)
    plt.close("all")
    example = re.search(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert example is not None
    names: dict = {}
    exec(compile(example[1], "README.md", "exec"), names)
    assert names["adata"].obsm["X_umap"].shape == (2000, 2)
    assert len(plt.get_fignums()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["pbmc.h5ad"]


@pytest.mark.slow
def test_the_calls_after_the_fit_run_on_the_cells_of_the_first_example(tmp_path, monkeypatch, nothing_shown):
    monkeypatch.chdir(tmp_path)
    adata = vx.datasets.pbmc_batches()
    fit_vae = vx.tl.fit_vae
    keys = []

    def short(adata, *args, cure=False, **settings):
        keys.append(args)
        fit_vae(adata, *args, max_epochs=4, **settings)

    monkeypatch.setattr(vx.tl, "fit_vae", short)
    vx.tl.fit_vae(adata, "batch")
    sc.pp.neighbors(adata, use_rep="X_vae")
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2)
    section = README.split("## After the fit")[1].split("\n## ")[0]
    names = {"adata": adata, "sc": sc, "vx": vx}
    for code in re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL):
        exec(compile(code, "README.md", "exec"), names)
    assert keys == [("batch",)] * 3  # no fit of the README forgets the batches of the first one
    assert set(names["new"].obs["leiden"]) == {"0"}
    adata.write_h5ad("used.h5ad")
    assert "wide" in sc.read_h5ad("used.h5ad").uns
