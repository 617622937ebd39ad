"""Computations with a trained model, on arrays and tensors; one module per question."""
