"""Scripts that torchrun starts from this folder are no modules of tests."""

collect_ignore = ["_errors.py"]
