"""Evaluation of predicted perturbations: populations, floors, and the table of scores."""
