"""Covariates, and the condition vector that the networks receive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from vxpress.core.config import ModelConfig
from vxpress.core.perturbations import OUTPUT_SCALE, Perturbations


@dataclass(frozen=True)
class Covariates:
    """Covariates of some cells: category codes, continuous values, label codes.

    ``categorical_nk`` is int64, with the batch (if any) in the first column; ``continuous_nc`` is standardised float32;
    ``label_n`` is int64 or None.  ``dose_np`` is the float32 dose of each perturbation, 0 where it is absent, or None for a
    model without perturbations.  ``panel_n`` is the int64 code of the genes that were measured, see
    :mod:`vxpress.core.panels`, or None if all were.  The tensors of all cells are stored once and indexed for each minibatch.
    """

    categorical_nk: Tensor
    continuous_nc: Tensor
    label_n: Tensor | None = None
    dose_np: Tensor | None = None
    panel_n: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Covariates:
        others = (None if part is None else part[rows] for part in (self.label_n, self.dose_np, self.panel_n))
        return Covariates(self.categorical_nk[rows], self.continuous_nc[rows], *others)

    def to(self, device: torch.device) -> Covariates:
        """Return the covariates on another device."""
        others = (None if part is None else part.to(device) for part in (self.label_n, self.dose_np, self.panel_n))
        return Covariates(self.categorical_nk.to(device), self.continuous_nc.to(device), *others)

    def with_batch(self, code: int) -> Covariates:
        """Return the same cells as if they came from batch ``code``."""
        return self.with_category(0, code)

    def with_category(self, k: int, code: int | Tensor) -> Covariates:
        """Return the same cells with category ``code`` of categorical covariate ``k``, or one of its own for each, (n,)."""
        categorical = self.categorical_nk.clone()
        categorical[:, k] = code
        return replace(self, categorical_nk=categorical)

    def with_value(self, c: int, value: float) -> Covariates:
        """Return the same cells with the standardised ``value`` of continuous covariate ``c``."""
        continuous = self.continuous_nc.clone()
        continuous[:, c] = value
        return replace(self, continuous_nc=continuous)

    def with_doses(self, dose: Tensor) -> Covariates:
        """Return the same cells with other doses, (p,) for all cells or (n, p)."""
        return replace(self, dose_np=dose.float().expand(len(self.continuous_nc), -1))


def indicators(code_n: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return one indicator column per category, (n, size).

    Unlike torch's ``one_hot``, it does not wait for the device to check the codes.
    """
    return (code_n[:, None] == torch.arange(size, device=code_n.device)).to(dtype)


class Conditioner(nn.Module):
    """Concatenate continuous columns, categories, one-hot or embedded, and strengths of perturbations to (n, width).

    This is the condition vector of the decoder, whose body receives the first ``body_width`` columns, without the
    perturbations. The encoders receive all of these, none, or the columns of optional covariates.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.sizes = config.received
        self.embeddings = (
            nn.ModuleList(nn.Embedding(size, config.n_embedding) for _, size in self.sizes)
            if config.covariate_code == "embedding"
            else None
        )
        self.widths = [size if self.embeddings is None else config.n_embedding for _, size in self.sizes]
        self.n_continuous = config.n_continuous
        self.perturbations = Perturbations(config) if config.n_perturbations else None
        self.body_width = sum(self.widths) + config.n_continuous
        self.width = self.body_width + config.n_perturbations
        # code of a hidden category: the one after the last
        self.hidden_codes = {k: config.n_categories[k] for k in config.optional}
        self.encoder_parts = _encoder_parts(config, self.body_width, self.sizes, self.widths)
        self.encoder_columns = [column for start, stop in self.encoder_parts for column in range(start, stop)]
        self.encoder_width = len(self.encoder_columns)

    def weights_of(self, k: int, effect_cg: Tensor) -> tuple[slice, Tensor]:
        """Return the columns of a categorical covariate in the condition vector, and weights of them, (g, columns).

        A linear layer with these weights adds ``effect_cg`` (categories, g) to its outputs, or comes closest to it if
        the categories are embedded.
        """
        i = [position for position, _ in self.sizes].index(k)
        start = self.n_continuous + sum(self.widths[:i])
        columns = slice(start, start + self.widths[i])
        if self.embeddings is None:
            return columns, effect_cg.t()
        vector_cw = cast("nn.Embedding", self.embeddings[i]).weight
        return columns, (torch.linalg.pinv(vector_cw) @ effect_cg).t()

    def average(self, known_k: Tensor) -> Tensor:
        """Return the mean condition vector over the first ``known_k`` categories, (width,).

        Continuous columns are 0, and there are no perturbations.
        """
        parts = [torch.zeros(self.n_continuous, device=known_k.device)]
        for i, (k, size) in enumerate(self.sizes):
            share = (torch.arange(size, device=known_k.device) < known_k[k]) / known_k[k]
            if self.embeddings is not None:
                weight = cast("nn.Embedding", self.embeddings[i]).weight
                share = share.to(weight.dtype) @ weight
            parts.append(share)
        if self.perturbations is not None:
            parts.append(torch.zeros(self.perturbations.n, device=known_k.device))
        return torch.cat(parts)

    def forward(self, covariates: Covariates) -> Tensor | None:
        """Return the condition vector, or None if there are no covariates."""
        if self.width == 0:
            return None
        parts = [covariates.continuous_nc]
        for i, (k, size) in enumerate(self.sizes):
            code = covariates.categorical_nk[:, k]
            if self.embeddings is None:
                parts.append(indicators(code, size, covariates.continuous_nc.dtype))
            elif k in self.hidden_codes:
                shown_n = code < size
                parts.append(self.embeddings[i](torch.where(shown_n, code, 0)) * shown_n[:, None])
            else:
                parts.append(self.embeddings[i](code))
        if (strength_np := self.strength(covariates)) is not None:
            parts.append(OUTPUT_SCALE * strength_np)
        return torch.cat(parts, dim=-1)

    def strength(self, covariates: Covariates) -> Tensor | None:
        """Return the strength of each perturbation in each cell, (n, p), or None without perturbations."""
        if self.perturbations is None:
            return None
        return self.perturbations.strength(cast("Tensor", covariates.dose_np))

    def shift(self, covariates: Covariates) -> Tensor | None:
        """Return what the perturbations add to z, (n, d), or None without perturbations."""
        if self.perturbations is None:
            return None
        return self.perturbations.shift(cast("Tensor", self.strength(covariates)))

    def perturbation_columns(self) -> slice:
        """Return the columns of the condition vector that hold the strengths of perturbations, times ``OUTPUT_SCALE``."""
        return slice(self.body_width, self.width)

    def for_encoder(self, s_nc: Tensor | None) -> Tensor | None:
        """Return the part of a condition vector that the encoders receive, (..., encoder_width), or None if it is empty."""
        if s_nc is None or not self.encoder_width:
            return None
        if self.encoder_width == self.width:
            return s_nc
        # slices, because an index would be sent to the device
        return torch.cat([s_nc[..., start:stop] for start, stop in self.encoder_parts], dim=-1)

    def hide(self, covariates: Covariates, hidden_n: Tensor | None = None) -> Covariates:
        """Return the same cells without the categories of optional covariates: their part of the condition vector is zero.

        ``hidden_n`` selects the cells, bool (n,); by default all.
        """
        if not self.hidden_codes:
            return covariates
        codes = covariates.categorical_nk.clone()
        for k, hidden in self.hidden_codes.items():
            codes[:, k] = hidden if hidden_n is None else torch.where(hidden_n, hidden, codes[:, k])
        return replace(covariates, categorical_nk=codes)


def _encoder_parts(
    config: ModelConfig, width: int, sizes: Sequence[tuple[int, int]], widths: Sequence[int]
) -> list[tuple[int, int]]:
    """Return which parts of the condition vector the encoders receive: all of it, or those of optional covariates."""
    if config.encode_covariates:
        return [(0, width)]
    starts = [config.n_continuous + sum(widths[:i]) for i in range(len(widths))]
    found = zip(sizes, starts, widths, strict=True)
    return [(start, start + n) for (k, _), start, n in found if k in config.optional]
