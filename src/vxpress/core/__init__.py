"""The model in torch and numpy. Nothing here depends on AnnData.

From cells to a trained model::

    source -> batch -> posterior -> point -> log_likelihood -> objective -> training

A *source* (``data``) holds cells and gives a *batch* of them. The model (``model.py``) consists of latent *blocks* and a
decoder: z and, if the settings ask for them, further latent variables (``blocks``), each with its encoder and its prior
(``priors``). It returns the *posterior* of a batch, a distribution for each block. A draw from it, or its mean, is a *point*: a
value for each block. Decoded (``networks.py``, ``bodies.py``), a point gives the distribution of the counts (``likelihoods``) and the
log likelihood of a batch. An *objective* (``objectives.py``) adds the divergences of the blocks from their priors, and *training*
maximises it. Analyses of a trained model are in ``inference``; costly parts have fast versions in ``kernels``.

Names of arrays end in the letters of their axes: ``n`` cells, ``g`` genes, ``d`` latent dimensions,
``s`` posterior samples, ``b`` batches, ``k`` categorical covariates, ``c`` the width of the condition
vector, ``h`` hidden units.  For example, ``x_ng`` is cells by genes and ``z_nd`` cells by latent dimensions.

Other names mean the same everywhere:

* ``source`` is a source, called ``cells`` in analyses of given cells; ``rows`` are the numbers of some of its cells, ``part``
  a slice of these.
* ``batch`` is a minibatch. Experimental batches are categories: ``n_batches``, ``has_batch``, ``batch_n`` for each cell.
* *Options* are what users give (``settings.py``), *settings* all of them with presets and defaults, and a *config* (``config.py``)
  is what builds a model or trains it once the data are known.
* ``eps`` is standard normal noise, ``noise`` the source of all random numbers of a model.
"""
