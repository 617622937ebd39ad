r"""Effects of perturbations that add up: :math:`z = z_{\mathrm{basal}} + \sum_p f_p(\mathrm{dose}_p)\, e_p`.

After the compositional perturbation autoencoder (Lotfollahi et al. 2023). A combination has several doses above 0, a control
cell none. The strength :math:`f_p` is the dose itself, or a Hill function of it:

.. math::

    f_p(x) = \frac{x^{h_p} (1 + k_p^{h_p})}{x^{h_p} + k_p^{h_p}}

which grows with the dose and is 0 at 0 and 1 at 1, the unit in which doses are given here. So the embedding :math:`e_p` is
the effect of this dose, and only perturbations with several doses have something to learn about :math:`h_p` and :math:`k_p`.

The encoder estimates the position with the perturbation, :math:`z_{\mathrm{basal}}` plus shift, and the shift is taken from
its mean. What a perturbation does to single genes beyond its shift is added in the output layer of the decoder, which
receives the strengths.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from vxpress.core.config import ModelConfig
from vxpress.core.normal import DiagonalNormal

# limits of the logs of half-effect dose and slope, far beyond what doses can show
MAX_LOG_HALF, MAX_LOG_SLOPE = 5.0, 2.0
# the output layer receives strengths times this, so that steps of the optimizer change its effects on genes, of which there are
# many and each is seen in few cells, by this much less than other weights
OUTPUT_SCALE = 0.1
# smallest dose above 0 that differs from it, in the unit of the reference
SMALLEST_DOSE = 1e-12


class Perturbations(nn.Module):
    """Embeddings of perturbations, (p, d), and their dose responses, if doses differ.

    Doses (n, p) are in units of a reference dose of each perturbation, 0 where it is absent.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n = config.n_perturbations
        self.embedding = nn.Parameter(torch.zeros(self.n, config.n_latent))
        self.log_half, self.log_slope = (
            nn.Parameter(torch.zeros(self.n)) if config.dose_response else None for _ in range(2)
        )

    def strength(self, dose_np: Tensor) -> Tensor:
        """Return f of every dose, (n, p)."""
        if self.log_half is None or self.log_slope is None:
            return dose_np
        return hill(dose_np, self.log_half, self.log_slope)

    def shift(self, strength_np: Tensor) -> Tensor:
        """Return the sum of the effects in the latent space, (n, d)."""
        return strength_np @ self.embedding


def hill(dose: Tensor, log_half: Tensor, log_slope: Tensor) -> Tensor:
    """Return the Hill function of doses that is 0 at 0 and 1 at 1; the arguments are broadcast."""
    slope, log_half = (
        log_slope.clamp(-MAX_LOG_SLOPE, MAX_LOG_SLOPE).exp(),
        log_half.clamp(-MAX_LOG_HALF, MAX_LOG_HALF),
    )
    log_share = logsigmoid(slope * (dose.clamp_min(SMALLEST_DOSE).log() - log_half))
    return torch.where(dose > 0, (log_share - logsigmoid(-slope * log_half)).exp(), 0.0)


def shifted(q: DiagonalNormal, shift_nd: Tensor) -> DiagonalNormal:
    """Return a normal distribution with its mean moved."""
    return DiagonalNormal(q.loc + shift_nd, q.scale)
