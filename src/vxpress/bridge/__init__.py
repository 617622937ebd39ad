"""Connect AnnData and the core: read counts and covariates, store results, and convert models to data and files."""
