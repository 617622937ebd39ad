"""Cells that a trained model has not seen, with new categories (``surgery.py``, ``fine_tuning.py``) or missing genes (``masked.py``)."""
