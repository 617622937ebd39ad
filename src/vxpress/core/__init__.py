"""The model in torch and numpy; nothing here knows of AnnData.

Arrays carry the letters of their axes as a suffix: ``n`` cells, ``g`` genes, ``d`` latent dimensions,
``s`` posterior samples, ``b`` batches, ``k`` categorical covariates, ``c`` the width of the condition
vector, ``h`` hidden units.  ``x_ng`` is cells by genes, ``z_nd`` cells by latent dimensions.
"""
