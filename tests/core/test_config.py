from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vxpress.core.config import ModelConfig, TrainConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("likelihood", "negative_binomial"),
        ("dispersion", "cell"),
        ("norm", None),
        ("covariate_code", "onehot"),
        ("n_genes", 0),
        ("n_genes", 2.0),
        ("n_latent", True),
        ("n_hidden", -1),
        ("n_layers", 0),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("n_categories", (3, 0)),
    ],
)
def test_a_model_setting_out_of_range_is_named(name: str, value: object) -> None:
    settings: dict[str, Any] = {"n_genes": 50, name: value}
    with pytest.raises(ValueError, match=name):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", 0),
        ("batch_size", 1),
        ("patience", 0),
        ("beta", -0.1),
        ("beta", float("nan")),
        ("beta", float("inf")),
        ("learning_rate", 0.0),
        ("kl_warmup", 1.5),
        ("optimizer", "sgd"),
        ("schedule", "cosine"),
        ("warmup_unit", "minutes"),
    ],
)
def test_a_training_setting_out_of_range_is_named(name: str, value: object) -> None:
    settings: dict[str, Any] = {"max_epochs": 5, name: value}
    with pytest.raises(ValueError, match=name):
        TrainConfig(**settings)


def test_the_error_names_the_valid_choices() -> None:
    with pytest.raises(ValueError, match="'nb', 'zinb', 'poisson', 'gaussian', 'bernoulli'"):
        ModelConfig(n_genes=50, likelihood="normal")  # type: ignore[arg-type]


def test_warmup_in_epochs_can_be_longer_than_training() -> None:
    assert TrainConfig(max_epochs=5, kl_warmup=400.0, warmup_unit="epochs").kl_warmup == 400


def test_a_latent_space_is_at_most_as_wide_as_the_data() -> None:
    assert ModelConfig(n_genes=4, n_latent=4).n_latent == 4
    with pytest.raises(ValueError, match="n_latent=4 or less"):
        ModelConfig(n_genes=4, n_latent=5)


def test_a_dispersion_needs_the_groups_it_varies_over() -> None:
    with pytest.raises(ValueError, match="batch_key"):
        ModelConfig(n_genes=20, dispersion="gene-batch", n_categories=(3,))
    with pytest.raises(ValueError, match="labels_key"):
        ModelConfig(n_genes=20, dispersion="gene-label")


def test_the_first_covariate_is_the_batch_only_with_has_batch() -> None:
    assert ModelConfig(n_genes=20, n_categories=(3, 2), has_batch=True).n_batches == 3
    assert ModelConfig(n_genes=20, n_categories=(3, 2)).n_batches == 1


def test_settings_are_compared_by_value() -> None:
    config = ModelConfig(n_genes=20, n_categories=(3,))
    assert config == dataclasses.replace(config, n_latent=3 + 17)
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_latent = 3  # type: ignore[misc]
