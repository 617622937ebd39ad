"""Forward pass, likelihood and gradient of a minibatch of the most common model, as jobs of compiled code.

The work is divided into fixed parts: the cells into groups, and the genes into tiles. Sums over cells add up those of the
groups in their order, whoever computed them, so the result has the same bits for any number of threads. The threads meet
after the weights are packed, after the cells, and after the gradients of the weights. A batch norm needs all cells at once,
which adds meetings before and after it.

:mod:`vxpress.core.kernels.step` makes the frames and the plan of the jobs. The logits of a block of cells stay in the processor's
cache until their gradient has been multiplied with the weights.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from vxpress.core.kernels import count_rows, latent_rows, layer_rows
from vxpress.core.kernels.frames import Layout, job
from vxpress.core.kernels.parts import call
from vxpress.core.kernels.products import TILE, address, multiply, tile
from vxpress.core.kernels.team import INNER
from vxpress.core.kernels.vector import add_to, assign, bits32, fill, narrow, pair_bfloat16

ZERO = np.float32(0.0)
# whether a product is added to its place, and whether its words hold two bfloat16
SET, ADD, FLOATS = np.int64(0), np.int64(1), np.int64(0)
# cells whose logits are kept in the cache at a time
BLOCK = 32
# terms of a long product that are read while they stay in the nearest cache
TERMS = 64

# the layers of encoder and decoder, z, and cells in groups between two CUTS
STEP = Layout()
CUTS, ENCODER_LAYER, DECODER_LAYER, LATENT = STEP.array("i8", 1), STEP.frame(), STEP.frame(), STEP.frame()
# what covariates add: parts of the condition vector of decoder and encoder, and of mean and z, which have no rows if nothing is added
CONDITION, ENCODED, ADD_MEAN, ADD_Z = (STEP.array("f4", 2) for _ in range(4))
# weights: those of mean and log variance, also side by side and transposed; those of the decoder's first layer, also transposed and padded
MEAN, LOG_VARIANCE, HEADS, INTO, INTO_TABLE, INTO_BACK = (STEP.array("f4", 2) for _ in range(6))
MEAN_BIAS, LOG_VARIANCE_BIAS, HEADS_BIAS, INTO_BIAS, NOTHING = (STEP.array("f4", 1) for _ in range(5))
# gradients of weights
D_MEAN, D_LOG_VARIANCE, D_INTO, D_CONDITIONS = (STEP.array("f4", 2) for _ in range(4))
D_MEAN_BIAS, D_LOG_VARIANCE_BIAS, D_INTO_BIAS, D_FIRST_BIAS = (STEP.array("f4", 1) for _ in range(4))
# frames of the output layers, whether they read the condition, the likelihood, and its gradients with respect to condition
# and dispersions (groups of cells, rows, genes)
OUTPUTS, WITH_CONDITION = STEP.array("i8", 1), STEP.number("i8")
SCORED, SCORE, D_CONDITION, D_THETA = STEP.frame(), STEP.number("i8"), STEP.array("f4", 2), STEP.array("f4", 3)
D_LOG_THETA, WEIGHT_OF_CELL = STEP.array("f4", 2), STEP.number("f4")
# the mean loss (one entry), if the optimizer's jobs follow in the same call
LOSS = STEP.array("f8", 1)
# memory of each thread for a block of cells: features, also in bfloat16, and their gradient; of z for the gradient of its layer
FEATURES, NARROW_FEATURES, D_FEATURES = STEP.array("f4", 3), STEP.array("i2", 3), STEP.array("f4", 3)
WIDE = STEP.array("f4", 2)

# one output layer: weights (genes, features), packed in the order of the products over features (tiles, terms, genes of a tile)
# and over genes (terms, features), in words of four bytes, which hold one float32 or, if PAIRED, two bfloat16
OUTPUT = Layout()
WEIGHT, BIAS, TILED, ROWS, PAIRED = (
    OUTPUT.array("f4", 2), OUTPUT.array("f4", 1), OUTPUT.array("i4", 3), OUTPUT.array("i4", 2), OUTPUT.number("i8"),
)  # fmt: skip
# words of all cells for the products over cells: features, times the gradient's scale, and gradients of the logits
KEPT, WORDS, SCALE = OUTPUT.array("i4", 2), OUTPUT.array("i4", 2), OUTPUT.number("f4")
# memory of each thread for the logits of a block, also in bfloat16, and for the gradient of the cell before
LOGITS, NARROW, PREVIOUS = OUTPUT.array("f4", 3), OUTPUT.array("i2", 3), OUTPUT.array("f4", 2)
# memory of each thread in which the likelihood reads the logits of a cell, and that in which it writes their gradient
LOGITS_OF_CELL, GRADIENT_OF_CELL = OUTPUT.array("f4", 2), OUTPUT.array("f4", 2)
# gradients, and memory of each thread for those of a tile of weights
D_WEIGHT, D_BIAS, D_BIASES, D_TILE = (
    OUTPUT.array("f4", 2),
    OUTPUT.array("f4", 1),
    OUTPUT.array("f4", 2),
    OUTPUT.array("f4", 3),
)


@njit(**INNER)
def _pair_rows(first, second, out):
    for j in range(first.size):
        out[j] = pair_bfloat16(first[j], second[j])


@njit(**INNER)
def _pair_zeros(row, out):
    for j in range(row.size):
        out[j] = pair_bfloat16(row[j], ZERO)


@njit(**INNER)
def _words(row, out):
    for j in range(row.size):
        out[j] = bits32(row[j])


@njit(**INNER)
def _scale(row, factor, out):
    for j in range(out.size):
        out[j] = row[j] * factor


@njit(**INNER)
def _sum(first, second, out):
    for j in range(out.size):
        out[j] = first[j] + second[j]


@job
def pack(frame, t, thread):
    """Copy tile ``t`` of the weights of an output layer in the order of the products."""
    weight, tiled, rows, paired = WEIGHT(frame), TILED(frame)[t], ROWS(frame), PAIRED(frame)
    n_genes, n_features = weight.shape
    first, last = tile(t, n_genes)
    for g in range(first, last):
        row, c = weight[g], g - first
        if paired:
            for k in range(n_features // 2):
                tiled[k, c] = pair_bfloat16(row[2 * k], row[2 * k + 1])
            if n_features % 2:
                tiled[n_features // 2, c] = pair_bfloat16(row[n_features - 1], ZERO)
            if g % 2 == 0:
                if g + 1 < last:
                    _pair_rows(row, weight[g + 1], rows[g // 2])
                else:
                    _pair_zeros(row, rows[g // 2])
        else:
            for k in range(n_features):
                tiled[k, c] = bits32(row[k])
            _words(row, rows[g])


@njit(**INNER)
def _dense(x, first, last, table, bias, out):
    """Compute x table + bias for some cells. ``x`` may have more columns than the table has rows; those of the table are padded."""
    for n in range(first, last):
        assign(out[n], bias)
    width = 4 * out.shape[1]
    multiply(
        address(x) + first * 4 * x.shape[1], 4 * x.shape[1], 4, address(table), 4 * table.shape[1],
        address(out) + first * width, width, last - first, table.shape[1], len(table), ADD, FLOATS,
    )  # fmt: skip


@njit(**INNER)
def _over_cells(left, column, right, out):
    """Compute left^T right, the gradient of a small weight matrix, from some column of ``left``; those of ``right`` are padded."""
    multiply(
        address(left) + 4 * column, 4, 4 * left.shape[1], address(right), 4 * right.shape[1],
        address(out), 4 * out.shape[1], len(out), right.shape[1], len(right), SET, FLOATS,
    )  # fmt: skip


@njit(**INNER)
def _sum_cells(x, first, out):
    """Sum some columns over the cells."""
    fill(out, ZERO)
    for n in range(len(x)):
        add_to(out, x[n][first:])


@job
def turn(frame, part, thread):
    """Copy the weights of the small layers in the order of the products."""
    mean, log_variance, heads, heads_bias = MEAN(frame), LOG_VARIANCE(frame), HEADS(frame), HEADS_BIAS(frame)
    mean_bias, log_variance_bias, d = MEAN_BIAS(frame), LOG_VARIANCE_BIAS(frame), len(MEAN(frame))
    for j in range(d):
        heads_bias[j], heads_bias[d + j] = mean_bias[j], log_variance_bias[j]
        for k in range(mean.shape[1]):
            heads[k, j], heads[k, d + j] = mean[j, k], log_variance[j, k]
    into, table, back = INTO(frame), INTO_TABLE(frame), INTO_BACK(frame)
    for j in range(len(into)):
        for k in range(into.shape[1]):
            table[k, j] = into[j, k]
        for k in range(d):
            back[j, k] = into[j, k]


@job
def heads(frame, part, thread):
    """Compute mean and log variance of the posterior from the encoder's hidden layer."""
    first, last, add = CUTS(frame)[part], CUTS(frame)[part + 1], ADD_MEAN(frame)
    out = latent_rows.PARAMETERS(LATENT(frame))
    _dense(layer_rows.OUT(ENCODER_LAYER(frame)), first, last, HEADS(frame), HEADS_BIAS(frame), out)
    if len(add) > 0:
        for n in range(first, last):
            for j in range(add.shape[1]):
                out[n, j] += add[n, j]


@job
def into(frame, part, thread):
    """Compute the decoder's first layer from z and the condition."""
    first, last, add, condition = CUTS(frame)[part], CUTS(frame)[part + 1], ADD_Z(frame), CONDITION(frame)
    z, code, table = latent_rows.Z(LATENT(frame)), latent_rows.CODE(LATENT(frame)), INTO_TABLE(frame)
    d = z.shape[1]
    for n in range(first, last):
        if len(add) > 0:
            add_to(z[n], add[n])
        for j in range(d):
            code[n, j] = z[n, j]
        for j in range(len(table) - d):
            code[n, d + j] = condition[n, j]
    _dense(code, first, last, table, INTO_BIAS(frame), layer_rows.U(DECODER_LAYER(frame)))


@job
def into_gradient(frame, part, thread):
    """Compute the gradient of z from that of the decoder's first layer."""
    back, d_z = INTO_BACK(frame), latent_rows.D_Z(LATENT(frame))
    d_u = layer_rows.D_U(DECODER_LAYER(frame))
    _dense(d_u, CUTS(frame)[part], CUTS(frame)[part + 1], back, NOTHING(frame), d_z)


@job
def heads_gradient(frame, part, thread):
    """Compute the gradient of the encoder's hidden layer from that of mean and log variance."""
    first, last, log_variance = CUTS(frame)[part], CUTS(frame)[part + 1], LOG_VARIANCE(frame)
    d_out, d_h = latent_rows.D_PARAMETERS(LATENT(frame)), layer_rows.D_OUT(ENCODER_LAYER(frame))
    _dense(d_out, first, last, MEAN(frame), NOTHING(frame), d_h)
    d, step, width = len(log_variance), 4 * d_out.shape[1], 4 * d_h.shape[1]
    multiply(
        address(d_out) + first * step + 4 * d, step, 4, address(log_variance), width,
        address(d_h) + first * width, width, last - first, d_h.shape[1], d, ADD, FLOATS,
    )  # fmt: skip


@njit(**INNER)
def _compute_logits(frame, thread, f, f16, size):
    """Compute the logits of a block of cells without bias, (cells, padded genes)."""
    tiled, out, paired = TILED(frame), LOGITS(frame)[thread], PAIRED(frame)
    n_terms = tiled.shape[1]
    left, step = (address(f16), 2 * f16.shape[1]) if paired else (address(f), 4 * f.shape[1])
    for t in range(len(tiled)):
        multiply(
            left, step, 4, address(tiled) + 4 * t * n_terms * TILE, 4 * TILE,
            address(out) + 4 * t * TILE, 4 * out.shape[1], size, TILE, n_terms, SET, paired,
        )  # fmt: skip


@njit(**INNER)
def _compute_d_features(frame, thread, size, keep, out):
    """Compute the product of the gradient of a block's logits with the weights, (cells, padded features)."""
    rows, paired, d, d16 = ROWS(frame), PAIRED(frame), LOGITS(frame)[thread], NARROW(frame)[thread]
    left, step = (address(d16), 2 * d16.shape[1]) if paired else (address(d), 4 * d.shape[1])
    for k in range(0, len(rows), TERMS):
        n_terms = TERMS if k + TERMS < len(rows) else len(rows) - k
        multiply(
            left + 4 * k, step, 4, address(rows) + 4 * k * rows.shape[1], 4 * rows.shape[1],
            address(out), 4 * out.shape[1], size, rows.shape[1], n_terms, ADD if k > 0 else keep, paired,
        )  # fmt: skip


@njit(**INNER)
def _keep_gradient(frame, part, thread, n, k, last):
    """Keep the gradient of the logits of cell ``n``, number ``k`` of its block, for the products over genes and over cells.

    Those over cells pair cells, so a gradient waits for that of the next cell. It is also added to that of the bias.
    """
    d, words, previous = GRADIENT_OF_CELL(frame)[thread], WORDS(frame), PREVIOUS(frame)[thread]
    add_to(D_BIASES(frame)[part], d)
    if not PAIRED(frame):
        assign(LOGITS(frame)[thread, k][: d.size], d)
        _words(d, words[n])
        return
    narrow(d, NARROW(frame)[thread, k])
    if n % 2:
        _pair_rows(previous, d, words[n // 2])
    elif n + 1 == last:
        _pair_zeros(d, words[n // 2])
    else:
        assign(previous, d)


@njit(**INNER)
def _keep_features(frame, first, f, size):
    """Keep the features of a block, times the scale of the gradient, for the product over cells; ``first`` is even."""
    words, scale = KEPT(frame), SCALE(frame)
    for n in range(size):
        row = f[n]
        if not PAIRED(frame):
            for j in range(row.size):
                words[first + n, j] = bits32(row[j] * scale)
        elif n % 2 == 0:
            out = words[(first + n) // 2]
            last = n + 1 == size
            for j in range(row.size):
                out[j] = pair_bfloat16(row[j] * scale, ZERO if last else f[n + 1, j] * scale)


@job
def decode(frame, part, thread):
    """Compute the likelihood of a group of cells from the decoder's hidden layer, and the gradient of the latter."""
    outputs, scored, d_theta = OUTPUTS(frame), SCORED(frame), D_THETA(frame)[part]
    h, d_h = layer_rows.OUT(DECODER_LAYER(frame)), layer_rows.D_OUT(DECODER_LAYER(frame))
    condition, d_condition, scale, width = CONDITION(frame), D_CONDITION(frame), WEIGHT_OF_CELL(frame), h.shape[1]
    n_condition = condition.shape[1] if WITH_CONDITION(frame) else 0
    f, f16, d_f = FEATURES(frame)[thread], NARROW_FEATURES(frame)[thread], D_FEATURES(frame)[thread]
    for output in outputs:
        fill(D_BIASES(output)[part], ZERO)
    for r in range(len(d_theta)):
        fill(d_theta[r], ZERO)
    last = CUTS(frame)[part + 1]
    for start in range(CUTS(frame)[part], last, BLOCK):
        size = BLOCK if start + BLOCK < last else last - start
        for k in range(size):
            assign(f[k][:width], h[start + k])
            for j in range(n_condition):
                f[k, width + j] = condition[start + k, j]
            if PAIRED(outputs[0]):
                narrow(f[k], f16[k])
        _keep_features(outputs[0], start, f, size)
        for output in outputs:
            _compute_logits(output, thread, f, f16, size)
        for k in range(size):
            n = start + k
            for output in outputs:
                _sum(LOGITS(output)[thread, k], BIAS(output), LOGITS_OF_CELL(output)[thread])
            call(SCORE(frame), scored, n, thread)
            add_to(d_theta[count_rows.ROW_THETA(scored)[n]], count_rows.D_THETA(scored)[thread])
            for output in outputs:
                _keep_gradient(output, part, thread, n, k, last)
        for i in range(outputs.size):
            _compute_d_features(outputs[i], thread, size, ADD if i > 0 else SET, d_f)
        for k in range(size):
            _scale(d_f[k], scale, d_h[start + k])
            for j in range(n_condition):
                d_condition[start + k, j] = d_f[k, width + j] * scale


@njit(**INNER)
def _sum_groups(sums, scale, first, last, out):
    """Add up the sums of all groups for the genes of a tile."""
    for j in range(first, last):
        total = ZERO
        for i in range(len(sums)):
            total += sums[i, j]
        out[j] = scale * total


@job
def output_gradient(frame, t, thread):
    """Compute the gradients of a tile of an output layer's weights and biases."""
    words, kept, d_weight = WORDS(frame), KEPT(frame), D_WEIGHT(frame)
    (first, last), out = tile(t, len(d_weight)), D_TILE(frame)[thread]
    multiply(
        address(words) + 4 * first, 4, 4 * words.shape[1], address(kept), 4 * kept.shape[1],
        address(out), 4 * out.shape[1], last - first, out.shape[1], len(kept), SET, PAIRED(frame),
    )  # fmt: skip
    for g in range(first, last):
        assign(d_weight[g], out[g - first])
    _sum_groups(D_BIASES(frame), SCALE(frame), first, last, D_BIAS(frame))


@job
def dispersion_gradient(frame, t, thread):
    """Compute the gradient of the log dispersions of a tile of genes."""
    d_theta, out, scale = D_THETA(frame), D_LOG_THETA(frame), WEIGHT_OF_CELL(frame)
    first, last = tile(t, out.shape[1])
    for r in range(len(out)):
        for g in range(first, last):
            total = ZERO
            for i in range(len(d_theta)):
                total += d_theta[i, r, g]
            out[r, g] = scale * total


@job
def heads_weights(frame, part, thread):
    """Compute the gradients of the weights of mean and log variance."""
    d_out, h, d_mean = latent_rows.D_PARAMETERS(LATENT(frame)), layer_rows.OUT(ENCODER_LAYER(frame)), D_MEAN(frame)
    d = len(d_mean)
    _over_cells(d_out, 0, h, d_mean)
    _over_cells(d_out, d, h, D_LOG_VARIANCE(frame))
    _sum_cells(d_out, 0, D_MEAN_BIAS(frame))
    _sum_cells(d_out, d, D_LOG_VARIANCE_BIAS(frame))


@job
def into_weights(frame, part, thread):
    """Compute the gradients of the weights of the decoder's first layer."""
    d_u, d_into, wide = layer_rows.D_U(DECODER_LAYER(frame)), D_INTO(frame), WIDE(frame)
    _over_cells(d_u, 0, latent_rows.CODE(LATENT(frame)), wide)
    for j in range(len(d_into)):
        assign(d_into[j], wide[j])
    _sum_cells(d_u, 0, D_INTO_BIAS(frame))


@job
def first_weights(frame, part, thread):
    """Compute the gradients of the encoder's first bias, and of its weights of covariates."""
    encoded, d_u = ENCODED(frame), layer_rows.D_U(ENCODER_LAYER(frame))
    if encoded.shape[1] > 0:
        _over_cells(encoded, 0, d_u, D_CONDITIONS(frame))
    _sum_cells(d_u, 0, D_FIRST_BIAS(frame))


@job
def add_loss(frame, part, thread):
    """Write the mean loss. It decides whether the step is void, so its rounding does not matter."""
    value, kl, total = count_rows.VALUE(SCORED(frame)), latent_rows.KL(LATENT(frame)), 0.0
    weight, d_kl = np.float64(WEIGHT_OF_CELL(frame)), np.float64(latent_rows.D_KL(LATENT(frame)))
    for n in range(value.size):
        total += weight * value[n]
        for j in range(kl.shape[1]):
            total += d_kl * kl[n, j]
    LOSS(frame)[0] = total
