"""Between AnnData and the core: reading counts and covariates, storing results, models as data and files."""
