"""Scores of predicted perturbations against measured ones: arrays in, numbers out."""
