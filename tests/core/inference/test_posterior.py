from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from vxpress.core import rule, threads
from vxpress.core.config import LikelihoodName, ModelConfig
from vxpress.core.data import Cells
from vxpress.core.inference import posterior
from vxpress.core.inference.posterior import Draws, Genes, encode, expected_expression
from vxpress.core.likelihoods import sums
from vxpress.core.model import VAE, build

DRAWS = Draws(4, (0, 1), seed=3)


def _model(likelihood: LikelihoodName, *, remainder: bool, n_readout: int) -> VAE:
    config = ModelConfig(
        n_genes=20,
        n_latent=3,
        n_hidden=8,
        likelihood=likelihood,
        n_categories=(2,),
        has_batch=True,
        remainder=remainder,
        n_readout=n_readout,
    )
    model = build(config, seed=0).eval()
    if n_readout and model.decoder.output.scalable:
        model.get_buffer("outside_share").fill_(0.3)
    return model


@torch.no_grad()
def _plain(model: VAE, mean_nd: torch.Tensor, var_nd: torch.Tensor, cells: Cells) -> tuple[torch.Tensor, ...]:
    """Compute expression term by term, for all cells at once."""
    generator = torch.Generator().manual_seed(DRAWS.seed)
    inside, outside = [], []
    for code in DRAWS.per_cell():
        z_nd = mean_nd + var_nd.sqrt() * torch.randn(mean_nd.shape, generator=generator)
        f_nf = model.decoder.features(z_nd, model.conditioner(cells.covariates.with_batch(code or 0)))
        location = model.decoder.location(f_nf)
        read = model.decoder.readout(f_nf) if model.decoder.readout is not None else torch.zeros(len(f_nf), 0)
        if model.decoder.output.scalable:
            share = F.softmax(location, dim=-1)
            outside_share = model.get_buffer("outside_share") if model.config.n_readout else torch.zeros(())
            rest = share[:, 20:] if model.config.remainder else torch.ones(())
            location = share[:, :20] if model.config.remainder else share * (1 - outside_share)
            read = outside_share * rest * F.softmax(read, dim=-1)
        inside.append(location)
        outside.append(read)
    return torch.stack(inside).mean(0), torch.stack(outside).mean(0)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("n_readout", [0, 7])
@pytest.mark.parametrize(
    ("likelihood", "remainder"), [("nb", False), ("nb", True), ("gaussian", False), ("bernoulli", False)]
)
def test_expected_expression_is_the_plain_mean_over_draws(
    monkeypatch: pytest.MonkeyPatch,
    make_cells: Callable[..., Cells],
    likelihood: LikelihoodName,
    remainder: bool,
    n_readout: int,
    compiled: bool,
) -> None:
    monkeypatch.setattr(rule, "MIN_DECODED_TERMS", 0 if compiled else math.inf)
    # several blocks, the last one short
    monkeypatch.setattr(sums, "BLOCK_ENTRIES", 1)
    cells = make_cells(n_batches=2)
    model = _model(likelihood, remainder=remainder, n_readout=n_readout)
    found = encode(model, cells)
    mean_nd, var_nd = torch.from_numpy(found.mean_nd), torch.from_numpy(found.var_nd)
    inside, outside = _plain(model, mean_nd, var_nd, cells)
    some = Genes(torch.tensor([4, 0]), torch.tensor([6, 2]) if n_readout else torch.tensor([], dtype=torch.int64))
    none = torch.tensor([], dtype=torch.int64)
    for genes in (Genes(), some, Genes(some.inside, none), Genes(none, some.outside)):
        parts = list(expected_expression(model, found, cells.covariates, DRAWS, genes))
        assert [part for part, _, _ in parts] == [slice(0, 120)]
        _, mine, outside_read = parts[0]
        torch.testing.assert_close(mine, inside if genes.inside is None else inside[:, genes.inside])
        assert (outside_read is None) == (n_readout == 0)
        if outside_read is not None:
            torch.testing.assert_close(outside_read, outside if genes.outside is None else outside[:, genes.outside])


@pytest.mark.parametrize("n_threads", [1, 3])
def test_few_parts_are_in_memory_and_all_threads_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, make_cells: Callable[..., Cells], n_threads: int
) -> None:
    monkeypatch.setattr(posterior, "CHUNK", 16)
    monkeypatch.setattr(posterior, "PART", 8)
    cells, model = make_cells(n_batches=2), _model("nb", remainder=True, n_readout=7)
    found = encode(model, cells)
    expected = torch.cat([part for _, part, _ in expected_expression(model, found, cells.covariates, DRAWS)])
    alive = weakref.WeakSet[torch.Tensor]()
    again = posterior.Sums.again

    def followed(self: posterior.Sums, n: int) -> posterior.Sums:
        made = again(self, n)
        alive.add(made.inside)
        return made

    monkeypatch.setattr(posterior.Sums, "again", followed)
    seen: list[int] = []
    with threads.OneThread(), threads.decided(n_threads):
        for part, inside, outside in expected_expression(model, found, cells.covariates, DRAWS):
            assert outside is not None
            seen += range(part.start, part.stop)
            assert torch.equal(inside, expected[part])
            assert float((inside.sum(1) + outside.sum(1)).max()) <= 1.0
            assert len(alive) <= 2 * n_threads + 2
    assert seen == list(range(120))


def test_encoding_by_several_threads_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, make_cells: Callable[..., Cells]
) -> None:
    monkeypatch.setattr(posterior, "CHUNK", 16)
    cells, model = make_cells(n_batches=2), _model("nb", remainder=False, n_readout=0)
    found = []
    for n_threads in (1, 3):
        with threads.OneThread(), threads.decided(n_threads):
            found.append(encode(model, cells))
    assert (found[0].mean_nd == found[1].mean_nd).all()
    assert (found[0].var_nd == found[1].var_nd).all()
