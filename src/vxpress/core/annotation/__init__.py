"""Labels of cells: a classifier on latent position and expression, its calibration, and cells of no known label.

``features.py`` makes features of z and of counts, ``softmax.py`` is logistic regression, ``head.py`` combines one on each kind of
features, learned and calibrated by cross-fitting (``folds.py``). ``novelty.py`` scores cells that may have no known label, and
``sets.py`` turns held-out predictions into sets of labels with a known coverage.
"""
