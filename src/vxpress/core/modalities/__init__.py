"""Modalities that cells have in addition to RNA: their networks, and how their posteriors are combined."""

from vxpress.core.modalities.experts import product
from vxpress.core.modalities.modality import Modality, start_modalities
from vxpress.core.modalities.showing import partly_shown
from vxpress.core.modalities.unmeasured import average_unmeasured

__all__ = ["Modality", "average_unmeasured", "partly_shown", "product", "start_modalities"]
