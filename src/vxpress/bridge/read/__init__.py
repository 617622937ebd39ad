"""Read an AnnData: columns, covariates, counts, size factors, chosen cells; check them and turn them into arrays."""
