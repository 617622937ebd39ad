"""The model in torch and numpy. Nothing here depends on AnnData.

Names of arrays end in the letters of their axes: ``n`` cells, ``g`` genes, ``d`` latent dimensions,
``s`` posterior samples, ``b`` batches, ``k`` categorical covariates, ``c`` the width of the condition
vector, ``h`` hidden units.  For example, ``x_ng`` is cells by genes and ``z_nd`` cells by latent dimensions.
"""
