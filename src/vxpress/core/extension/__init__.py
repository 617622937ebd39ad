"""Checks of classes from outside the package: what they define (``registration.py``), and what it returns (``trial.py``)."""
