from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from vxpress.bridge.fits.codec import from_uns, to_uns
from vxpress.bridge.fits.params import Params
from vxpress.core.config import ModelConfig, PriorConfig, TrainConfig
from vxpress.core.option import check, option

MODELS = [
    ModelConfig(n_genes=20),
    ModelConfig(n_genes=20, n_categories=(3,), has_batch=True, dispersion="gene-batch"),
    ModelConfig(n_genes=7, n_latent=2, n_categories=(1, 4), n_continuous=2, covariate_code="embedding", remainder=True),
]
TRAINS = [TrainConfig(max_epochs=3), TrainConfig(max_epochs=400, kl_warmup=400.0, warmup_unit="epochs", beta=0.0)]


def _params(model: ModelConfig, train: TrainConfig) -> Params:
    return Params(
        model=model,
        train=train,
        version="0.1.0",
        library="observed",
        library_source="obs['library_size']",
        scale="composition",
        layer="counts/with a slash",
        categorical_covariate_keys=("a/b", "c.d") if len(model.n_categories) > 1 else (),
        rng=2**40,
    )


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("train", TRAINS)
def test_every_config_survives_a_file(tmp_path: Path, suffix: str, model: ModelConfig, train: TrainConfig) -> None:
    params = _params(model, train)
    adata = ad.AnnData(np.zeros((1, 1), dtype=np.float32), uns={"p": to_uns(params)})
    path = tmp_path / f"a.{suffix}"
    if suffix == "h5ad":
        adata.write_h5ad(path)
        back = ad.read_h5ad(path)
    else:
        adata.write_zarr(path)
        back = ad.read_zarr(path)
    assert from_uns(Params, back.uns["p"]) == params


def test_options_left_out_are_not_stored() -> None:
    stored = to_uns(_params(MODELS[0], TRAINS[0]))
    assert "batch_key" not in stored
    assert all(value is not None for value in stored.values())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n_genes": "many"}, "n_genes"),
        ({"n_genes": 3.5}, "n_genes"),
        ({"remainder": 1}, "remainder"),
        ({"surprise": 1}, "surprise"),
        ({"likelihood": "magic"}, "likelihood"),
        ({"n_hidden": 10**15}, "n_hidden"),
    ],
)
def test_damaged_settings_are_named(change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        from_uns(ModelConfig, to_uns(MODELS[0]) | change)


@pytest.mark.parametrize("name", to_uns(MODELS[0]))
def test_a_missing_setting_is_named_and_not_replaced_by_a_default(name: str) -> None:
    stored = to_uns(MODELS[0])
    del stored[name]
    with pytest.raises(ValueError, match=name):
        from_uns(ModelConfig, stored)


@dataclass(frozen=True)
class Record:
    old: int
    new: int = option(3, low=0, high=9, since="0.2.0")

    def __post_init__(self) -> None:
        check(self)


def test_an_option_added_later_is_stored_only_if_it_is_not_the_default() -> None:
    assert to_uns(Record(1)) == {"old": 1}
    assert from_uns(Record, {"old": 1}) == Record(1, 3)
    assert from_uns(Record, to_uns(Record(1, 4))) == Record(1, 4)
    with pytest.raises(ValueError, match="new=10"):
        from_uns(Record, {"old": 1, "new": 10})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"n_components": 2.5}, "n_components"),
        ({"n_components": 0}, "n_components"),
        ({"surprise": 1}, "surprise"),
        ({"name": "magic"}, "prior='magic'"),
    ],
)
def test_options_of_a_prior_are_stored_next_to_its_name(change: dict, match: str) -> None:
    prior = PriorConfig.of("vamp", 2, n_components=7)
    stored = to_uns(prior)
    assert stored == {"name": "vamp", "n_conditions": 2, "n_components": 7, "from_cells": False}
    assert from_uns(PriorConfig, stored) == prior
    with pytest.raises(ValueError, match=match):
        from_uns(PriorConfig, stored | change)
    for name in stored:
        with pytest.raises(ValueError, match=name):
            from_uns(PriorConfig, {other: value for other, value in stored.items() if other != name})
