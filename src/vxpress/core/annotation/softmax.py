"""Multinomial logistic regression with a ridge penalty, fitted by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vxpress.core.whole_import import import_for_optimizers

MAX_ITERATIONS, HISTORY, TOLERANCE = 150, 10, 1e-5


@dataclass(frozen=True)
class Softmax:
    """Weights (labels, features) and biases (labels,); the logits of a label without cells are far below all others."""

    weight_cd: Tensor
    bias_c: Tensor

    @classmethod
    def fit(
        cls, x_nd: Tensor, code_n: Tensor, n_labels: int, penalty: float, weight_n: Tensor | None = None
    ) -> Softmax:
        """Minimise the mean cross entropy of cells with codes 0 to ``n_labels`` - 1, weighted, plus penalty / 2 |W|^2.

        Features are used as they are, so their scale decides how much the penalty shrinks them.
        """
        met_c = torch.bincount(code_n, minlength=n_labels) > 0
        weight_n = torch.ones_like(x_nd[:, 0]) if weight_n is None else weight_n
        share_n = weight_n / weight_n.sum()
        # at the mean, bias and weights hardly depend on each other, which takes fewer steps
        centre_d = share_n @ x_nd
        centred_nd = x_nd - centre_d
        floor_c = torch.where(met_c, 0.0, -torch.inf).to(x_nd)
        weight_cd = torch.zeros(n_labels, x_nd.shape[1], dtype=x_nd.dtype, device=x_nd.device, requires_grad=True)
        bias_c = torch.zeros(n_labels, dtype=x_nd.dtype, device=x_nd.device, requires_grad=True)
        import_for_optimizers()
        optimizer = torch.optim.LBFGS(
            [weight_cd, bias_c], max_iter=MAX_ITERATIONS, history_size=HISTORY, tolerance_grad=TOLERANCE,
            tolerance_change=1e-8, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = centred_nd @ weight_cd.t() + bias_c + floor_c
            entropy = -(share_n * logits.log_softmax(-1).gather(1, code_n[:, None])[:, 0]).sum()
            found = entropy + 0.5 * penalty * weight_cd.square().sum() + 1e-8 * bias_c.square().sum()
            found.backward()
            return found

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        weight_cd, bias_c = weight_cd.detach(), bias_c.detach()
        # a finite number, because stored weights are finite
        bias_c = torch.where(met_c, bias_c - weight_cd @ centre_d, -1e4)
        return cls(weight_cd, bias_c)

    def log_prob(self, x_nd: Tensor) -> Tensor:
        """Compute log probabilities of the labels, (n, labels)."""
        return (x_nd @ self.weight_cd.t() + self.bias_c).log_softmax(-1)
