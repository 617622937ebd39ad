"""Prior distributions of z.  A new prior is one class, registered in :data:`PRIORS` under its name."""

from __future__ import annotations

from vxpress.core import registry
from vxpress.core.priors.base import Prior
from vxpress.core.priors.diffusion import Diffusion
from vxpress.core.priors.estimate import SampledKL, drawn_log_prob, sampled_kl
from vxpress.core.priors.flow import Flow
from vxpress.core.priors.flow_matching import FlowMatching
from vxpress.core.priors.label_mixture import LabelMixture
from vxpress.core.priors.mixture import Mixture
from vxpress.core.priors.standard_normal import StandardNormal
from vxpress.core.priors.vamp import Vamp

PRIORS: registry.Registry[type[Prior]] = registry.PRIORS
PRIORS.register("normal", StandardNormal)
PRIORS.register("mixture", Mixture)
PRIORS.register("vamp", Vamp)
PRIORS.register("flow", Flow)
PRIORS.register("diffusion", Diffusion)
PRIORS.register("flow_matching", FlowMatching)
PRIORS.register("label_mixture", LabelMixture)

__all__ = [
    "PRIORS",
    "Prior",
    "SampledKL",
    "StandardNormal",
    "drawn_log_prob",
    "sampled_kl",
]
