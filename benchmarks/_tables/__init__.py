"""Tables of the documentation, made from ``benchmarks/results``. ``pages.py`` inserts them into the pages."""
