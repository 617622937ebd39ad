"""The registries of the package; each is filled by the module that defines its built-in classes.

They are defined here, in a module without further imports, because options are checked against them and the classes
they hold are built from options. The modules that fill them say which classes they hold.
"""

from __future__ import annotations

from typing import Any

from vxpress.core.registry import Registry

LIKELIHOODS: Registry[Any] = Registry("likelihood", home="vxpress.core.likelihoods")
PRIORS: Registry[Any] = Registry("prior", home="vxpress.core.priors")
OBJECTIVES: Registry[Any] = Registry("objective", home="vxpress.core.objectives")
DECODERS: Registry[Any] = Registry("decoder", home="vxpress.core.bodies")
SOURCES: Registry[Any] = Registry("data source", home="vxpress.core.data")
BLOCKS: Registry[Any] = Registry("latent block", home="vxpress.core.blocks")
