"""A model of RNA and proteins: cells that lack a modality, terms, training, and what is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from vxpress.bridge.fits.codec import from_uns, to_uns
from vxpress.core import rule
from vxpress.core.blocks import Z
from vxpress.core.config import ModalityConfig, ModelConfig, TrainConfig
from vxpress.core.covariates import Covariates
from vxpress.core.data import Cells, Counts, Joined
from vxpress.core.inference.importance import log_likelihood
from vxpress.core.inference.posterior import encode
from vxpress.core.modalities import partly_shown
from vxpress.core.model import VAE, build
from vxpress.core.noise import Noise
from vxpress.core.query.surgery import extend
from vxpress.core.start import start_at_components
from vxpress.core.training import Outcome, Training, train

PROTEIN = ModalityConfig("protein", 6, "nb")
CONFIG = ModelConfig(n_genes=20, n_latent=2, n_hidden=16, modalities=(PROTEIN,))


def _changed(joined: Joined, rows: torch.Tensor) -> Joined:
    """Return the same cells with other counts of what the cells ``rows`` lack."""
    sources = []
    for name, source in (("rna", joined.first), *joined.further.items()):
        assert isinstance(source, Cells)
        x_ng, observed_n = source.counts.dense(torch.arange(len(source))), joined.observed(name)
        assert observed_n is not None
        x_ng[rows[~observed_n[rows]]] += 7.0
        sources.append(replace(source, counts=Counts.from_dense(x_ng)))
    masks = {name: mask for name in ("rna", "protein") if (mask := joined.observed(name)) is not None}
    return Joined(sources[0], {"protein": sources[1]}, masks)


def _trained(joined: Joined, *, config: ModelConfig = CONFIG, n_epochs: int = 2) -> tuple[VAE, Outcome]:
    model, rows = build(config, 0), torch.arange(len(joined))
    model.start_from(joined, rows[30:])
    start_at_components(model, joined, rows[30:])
    return model, train(model, joined, rows[30:], rows[:30], TrainConfig(max_epochs=n_epochs, batch_size=32), seed=1)


@pytest.fixture(scope="module")
def lacking(make_joined: Callable[..., Joined]) -> tuple[Joined, VAE, Outcome]:
    """Return cells a third of which lacks either modality, and a model trained on them."""
    joined = make_joined(lacking=True)
    return joined, *_trained(joined)


def test_counts_of_a_modality_that_a_cell_lacks_change_nothing(lacking: tuple[Joined, VAE, Outcome]) -> None:
    joined, trained, outcome = lacking
    other = _changed(joined, torch.arange(len(joined)))
    again, outcome_again = _trained(other)
    for name, values in outcome.history.items():
        np.testing.assert_allclose(outcome_again.history[name], values, rtol=1e-4)
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=1e-3, atol=1e-4)
    bounds = [log_likelihood(trained, cells, 3, seed=0).log_likelihood_n for cells in (joined, other)]
    np.testing.assert_allclose(*bounds, rtol=1e-5)


def test_history_has_a_term_for_each_modality_and_both_are_learned(lacking: tuple[Joined, VAE, Outcome]) -> None:
    history = lacking[2].history
    for part in ("train", "validation"):
        parts = [history[f"reconstruction_{name}_{part}"] for name in ("rna", "protein")]
        np.testing.assert_allclose(np.sum(parts, axis=0), history[f"reconstruction_{part}"], rtol=1e-6)
    assert history["reconstruction_rna_train"][-1] > history["reconstruction_rna_train"][0]
    assert history["reconstruction_protein_train"][-1] > history["reconstruction_protein_train"][0]


def test_terms_are_zero_for_a_modality_that_a_cell_lacks(lacking: tuple[Joined, VAE, Outcome]) -> None:
    joined, model, _ = lacking
    batch = joined.batch(torch.arange(9))
    terms = model.log_likelihood(model.posterior(batch).mean(), batch)
    assert tuple(terms) == model.modalities == ("rna", "protein")
    for name, third in (("rna", 0), ("protein", 1)):
        np.testing.assert_array_equal((terms[name] == 0).numpy(), np.arange(9) % 3 == third)


def test_the_posterior_is_wider_with_fewer_modalities(make_joined: Callable[..., Joined]) -> None:
    joined = make_joined()
    model, _ = _trained(joined)
    n = len(joined)
    found = {"both": encode(model, joined)}
    for name in ("rna", "protein"):
        nowhere = torch.zeros(n, dtype=torch.bool)
        other = next(one for one in ("rna", "protein") if one != name)
        found[name] = encode(model, Joined(joined.first, joined.further, {other: nowhere}))
        assert (found[name].var_nd > found["both"].var_nd).all()
        assert (found[name].var_nd < 1.0).all()


def test_a_training_that_is_stored_continues_with_the_same_bits(make_joined: Callable[..., Joined]) -> None:
    joined, rows, config = make_joined(lacking=True), torch.arange(150), TrainConfig(max_epochs=2, batch_size=32)

    def started() -> Training:
        return Training(build(CONFIG, 0), joined, rows[30:], rows[:30], config, seed=1)

    whole, first, second = started(), started(), started()
    whole.run()
    first.run(until=1)
    second.load_state_dict(first.state_dict())
    second.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_plain_and_compiled_code_agree(make_joined: Callable[..., Joined]) -> None:
    joined = make_joined(lacking=True)
    model, batch = build(CONFIG, 0), joined.batch(torch.arange(60))
    values = []
    for context in (rule.plain, None):
        model.zero_grad()
        if context is None:
            terms = model.log_likelihood(model.posterior(batch).mean(), batch)
            sum(term.sum() for term in terms.values()).backward()  # type: ignore[union-attr]
        else:
            with context():
                terms = model.log_likelihood(model.posterior(batch).mean(), batch)
                sum(term.sum() for term in terms.values()).backward()  # type: ignore[union-attr]
        values.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, two in zip(*values, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_a_share_of_the_cells_shows_one_of_its_modalities(make_joined: Callable[..., Joined]) -> None:
    batch = make_joined(lacking=True, n=3_000).batch(torch.arange(3_000))
    shown = partly_shown(batch, 0.5, Noise(0))
    before, after = (
        torch.stack([part.observed_n for part in (one, one.further["protein"]) if part.observed_n is not None]).int()
        for one in (batch, shown)
    )
    assert (after <= before).all()
    assert (after.sum(0) >= 1).all()
    several_n = before.sum(0) == 2
    assert torch.equal(after[:, ~several_n], before[:, ~several_n])
    # 1,000 cells have both: three standard errors
    both, rna = (
        (after[:, several_n].sum(0) == 2).float().mean(),
        (after[:, several_n] * torch.tensor([[1], [-1]])).sum(),
    )
    assert abs(float(both) - 0.5) < 0.05
    assert abs(float(rna)) < 3 * 500**0.5


def test_a_model_without_further_modalities_draws_the_same_initial_weights() -> None:
    with_others, alone = build(CONFIG, 0), build(replace(CONFIG, modalities=()), 0)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, with_others.state_dict()[name]), name


def test_settings_are_stored_and_read_again() -> None:
    config = replace(CONFIG, modalities=(PROTEIN, ModalityConfig("atac", 30, "bernoulli")), alone_share=0.25)
    assert from_uns(ModelConfig, to_uns(config)) == config
    assert "modalities" not in to_uns(replace(CONFIG, modalities=(), alone_share=0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": (PROTEIN, PROTEIN)}, r"\['protein', 'protein'\].*names that differ"),
        ({"norm": "batch"}, "norm='layer'"),
        ({"n_latent": 27}, "n_latent=27 exceeds the 26 "),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rna", "two words", ""])
def test_a_name_that_cannot_name_a_modality_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a modality"):
        ModalityConfig(name, 3)


def test_z_may_have_more_dimensions_than_a_modality_has_features(make_joined: Callable[..., Joined]) -> None:
    config = replace(CONFIG, n_latent=8)
    model, joined = build(config, 0), make_joined()
    assert model.posterior(joined.batch(torch.arange(4)))[Z].loc.shape == (4, 8)


def _in_batches(joined: Joined, code_n: torch.Tensor, observed_n: torch.Tensor) -> Joined:
    covariates = Covariates(code_n[:, None], torch.zeros(len(code_n), 0))
    sources = (joined.first.with_covariates(covariates), joined.further["protein"].with_covariates(covariates))
    return Joined(sources[0], {"protein": sources[1]}, {"protein": observed_n})


def test_a_batch_without_the_modality_and_a_new_one_are_decoded_as_the_mean_of_the_others(
    make_joined: Callable[..., Joined],
) -> None:
    code_n = torch.arange(150) % 3
    cells = _in_batches(make_joined(), code_n, code_n < 2)
    config = replace(CONFIG, n_categories=(3,), has_batch=True, encode_covariates=True)
    trained, _ = _trained(cells, config=config)
    for model in (trained, extend(trained, [1])):
        decoder = model.others["protein"].decoder
        columns = decoder.location.weight[:, -model.conditioner.width :]
        torch.testing.assert_close(columns[:, 2], columns[:, :2].mean(1))
        assert not torch.allclose(columns[:, 0], columns[:, 1])
        # RNA was measured in all batches
        of_rna = model.decoder.location.weight[:, -model.conditioner.width :]
        assert not torch.allclose(of_rna[:, 2], of_rna[:, :2].mean(1))
    torch.testing.assert_close(columns[:, 3], columns[:, :3].mean(1))
    batch = cells.batch(torch.arange(6))
    q, again = (model.posterior(batch)[Z] for model in (trained, extend(trained, [1])))
    torch.testing.assert_close(q.loc, again.loc)
    for one, two in zip(
        trained.log_likelihood({Z: torch.zeros(6, 2)}, batch).values(),
        extend(trained, [1]).log_likelihood({Z: torch.zeros(6, 2)}, batch).values(),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
