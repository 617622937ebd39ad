"""Multinomial logistic regression with a ridge penalty, fitted by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

# ends when an iteration lowers the loss by less than this share, or after this many
TOLERANCE, MAX_ITERATIONS = 1e-7, 200
# bias of a label without cells: finite, because stored weights are
NEVER = -1e4


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
        codes, place_n = np.unique(code_n.numpy(), return_inverse=True)
        share_n = np.full(len(place_n), 1.0) if weight_n is None else weight_n.numpy().astype(np.float64)
        share_n /= share_n.sum()
        # at the mean, bias and weights hardly depend on each other, which takes fewer steps
        centre_d = share_n @ x_nd.numpy()
        x = x_nd.numpy() - centre_d.astype(np.float32)
        shape, rows = (len(codes), x.shape[1] + 1), np.arange(len(x))

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            w_cd, b_c = parameters.reshape(shape)[:, :-1], parameters.reshape(shape)[:, -1]
            logits_nc = (x @ w_cd.T.astype(np.float32)).astype(np.float64) + b_c
            logits_nc -= logits_nc.max(1, keepdims=True)
            prob_nc = np.exp(logits_nc)
            sums_n = prob_nc.sum(1)
            value = share_n @ (np.log(sums_n) - logits_nc[rows, place_n]) + 0.5 * penalty * np.square(w_cd).sum()
            prob_nc /= sums_n[:, None]
            prob_nc[rows, place_n] -= 1.0
            prob_nc *= share_n[:, None]
            gradient = np.empty(shape)
            gradient[:, :-1] = prob_nc.T.astype(np.float32) @ x
            gradient[:, :-1] += penalty * w_cd
            gradient[:, -1] = prob_nc.sum(0)
            return float(value), gradient.ravel()

        options = {"maxiter": MAX_ITERATIONS, "ftol": TOLERANCE, "gtol": 1e-6}
        found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(shape)
        weight_cd, bias_c = np.zeros((n_labels, shape[1] - 1)), np.full(n_labels, NEVER)
        weight_cd[codes], bias_c[codes] = found[:, :-1], found[:, -1] - found[:, :-1] @ centre_d
        return cls(torch.from_numpy(weight_cd).float(), torch.from_numpy(bias_c).float())

    def log_prob(self, x_nd: Tensor) -> Tensor:
        """Compute log probabilities of the labels, (n, labels)."""
        return (x_nd @ self.weight_cd.t() + self.bias_c).log_softmax(-1)
