"""Tables of the documentation, made from ``benchmarks/results``; ``pages.py`` puts them into the pages."""
