"""Covariates, and the condition vector that the networks receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vxpress.core.config import ModelConfig


@dataclass(frozen=True)
class Covariates:
    """Covariates of some cells: category codes, continuous values, label codes.

    ``categorical_nk`` is int64, with the batch (if any) in the first column; ``continuous_nc`` is standardised float32;
    ``label_n`` is int64 or None.  The tensors of all cells are stored once and indexed for each minibatch.
    """

    categorical_nk: Tensor
    continuous_nc: Tensor
    label_n: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Covariates:
        label = None if self.label_n is None else self.label_n[rows]
        return Covariates(self.categorical_nk[rows], self.continuous_nc[rows], label)

    def to(self, device: torch.device) -> Covariates:
        """Return the covariates on another device."""
        label = None if self.label_n is None else self.label_n.to(device)
        return Covariates(self.categorical_nk.to(device), self.continuous_nc.to(device), label)

    def with_batch(self, code: int) -> Covariates:
        """Return the same cells as if they came from batch ``code``."""
        return self.with_category(0, code)

    def with_category(self, k: int, code: int | Tensor) -> Covariates:
        """Return the same cells with category ``code`` of categorical covariate ``k``, or one of its own for each, (n,)."""
        categorical = self.categorical_nk.clone()
        categorical[:, k] = code
        return Covariates(categorical, self.continuous_nc, self.label_n)

    def with_value(self, c: int, value: float) -> Covariates:
        """Return the same cells with the standardised ``value`` of continuous covariate ``c``."""
        continuous = self.continuous_nc.clone()
        continuous[:, c] = value
        return Covariates(self.categorical_nk, continuous, self.label_n)


def indicators(code_n: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return one indicator column per category, (n, size).

    Unlike torch's ``one_hot``, it does not wait for the device to check the codes.
    """
    return (code_n[:, None] == torch.arange(size, device=code_n.device)).to(dtype)


class Conditioner(nn.Module):
    """Concatenate the categories, one-hot or embedded, and the continuous columns: (n, k), (n, c) -> (n, width)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # a covariate with one category carries no information and would only shift the bias
        self.sizes = [(k, size) for k, size in enumerate(config.n_categories) if size > 1]
        self.embeddings = (
            nn.ModuleList(nn.Embedding(size, config.n_embedding) for _, size in self.sizes)
            if config.covariate_code == "embedding"
            else None
        )
        widths = [size if self.embeddings is None else config.n_embedding for _, size in self.sizes]
        self.n_continuous = config.n_continuous
        self.width = sum(widths) + config.n_continuous

    def average(self, known_k: Tensor) -> Tensor:
        """Return the mean condition vector over the first ``known_k`` categories, continuous columns at 0, (width,)."""
        parts = [torch.zeros(self.n_continuous, device=known_k.device)]
        for i, (k, size) in enumerate(self.sizes):
            share = (torch.arange(size, device=known_k.device) < known_k[k]) / known_k[k]
            if self.embeddings is not None:
                weight = cast("nn.Embedding", self.embeddings[i]).weight
                share = share.to(weight.dtype) @ weight
            parts.append(share)
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
            else:
                parts.append(self.embeddings[i](code))
        return torch.cat(parts, dim=-1)
