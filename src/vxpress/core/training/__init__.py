"""Training of a whole model; :mod:`vxpress.core.loop` is the small loop for parts of one.

``training.py`` is the loop, read from top to bottom. It takes a step (``step.py``) for each minibatch: a gradient, by autograd or,
for the most common model, in closed form (``closed_form.py``), and an update of all weights (``optimizer.py``). ``device.py``
replays a step as a CUDA graph. ``schedules.py`` and ``encoder_ahead.py`` change with the steps taken; ``evaluation.py``,
``keeper.py``, ``outcome.py`` and ``trouble.py`` judge and record every epoch; ``state.py`` is the state of all of it, from which
a training continues, and ``checkpoint.py`` stores it. Several processes share it by ``ranks.py``; ``same_cells.py`` says whether cells are
the same. After the last epoch, ``dispersion.py`` fits the dispersions again.
"""

from vxpress.core.training.outcome import HISTORY, INTERRUPTED, STOPPED, Outcome
from vxpress.core.training.state import OtherTrainingError
from vxpress.core.training.training import Training, train
from vxpress.core.training.trouble import TrainingError

__all__ = ["HISTORY", "INTERRUPTED", "STOPPED", "OtherTrainingError", "Outcome", "Training", "TrainingError", "train"]
