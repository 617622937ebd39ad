"""The registries of the package; each is filled by the module that defines its built-in classes.

They are defined here, in a module without further imports, because options are checked against them and the classes
they hold are built from options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vxpress.core.registry import Registry

if TYPE_CHECKING:
    from vxpress.core.blocks import Block
    from vxpress.core.bodies import Body
    from vxpress.core.data import Source
    from vxpress.core.likelihoods import Likelihood
    from vxpress.core.objectives import Objective
    from vxpress.core.priors import Prior

LIKELIHOODS: Registry[type[Likelihood]] = Registry("likelihood", home="vxpress.core.likelihoods")
PRIORS: Registry[type[Prior]] = Registry("prior", home="vxpress.core.priors")
OBJECTIVES: Registry[type[Objective]] = Registry("objective", home="vxpress.core.objectives")
DECODERS: Registry[type[Body]] = Registry("decoder", home="vxpress.core.bodies")
SOURCES: Registry[type[Source]] = Registry("data source", home="vxpress.core.data")
BLOCKS: Registry[type[Block]] = Registry("latent block", home="vxpress.core.blocks")
