"""Forward pass, likelihood and gradient of a minibatch of the most common model, in one compiled call.

The work is divided into fixed parts: the cells into groups, and the genes into tiles. Sums over cells add up those of the
groups in their order, whoever computed them, so the result has the same bits for any number of threads. The threads meet
after the weights are packed, after the cells, and after the gradients of the weights. A batch norm needs all cells at once,
which adds meetings before and after it.

Arguments are tuples, which :mod:`vxpress.core.kernels.step` makes and describes. The logits of a block of cells stay in the
processor's cache until their gradient has been multiplied with the weights.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from vxpress.core.kernels.count_rows import fill_row_tables, row_memory
from vxpress.core.kernels.parts import finish, meet, take
from vxpress.core.kernels.products import TILE, address
from vxpress.core.kernels.sparse_rows import count_genes
from vxpress.core.kernels.team import CACHED, INNER
from vxpress.core.kernels.vector import assign, bits32, exp32, fill, pair_bfloat16, to_bfloat16

ZERO, ONE = np.float32(0.0), np.float32(1.0)
# whether a product is added to its place, and whether its words hold two bfloat16
SET, ADD, FLOATS = np.int64(0), np.int64(1), np.bool_(False)  # noqa: FBT003 - types of arguments
# cells whose logits are kept in the cache at a time
BLOCK = 32
# terms of a long product that are read while they stay in the nearest cache
TERMS = 64
# stages of the cells, between which a batch norm needs all of them
ENCODE, INFER, DECODE, INFER_BACK, END = range(5)
# kinds of rounds, and the number of jobs that are not a tile of genes in the last one
PACK, CELLS, ALL_CELLS, WEIGHTS = range(4)
SMALL_JOBS = 4
# places of the loops in the tuple of pointers
BY_CELL, MULTIPLY, ENTRIES, GATHER, NORM, NORM_BACK, POSTERIOR, POSTERIOR_BACK, SCORE = range(9)


@njit(**INNER)
def _least(a, b):
    return a if a < b else b


@njit(**INNER)
def _pair_rows(first, second, out):
    for j in range(first.size):
        out[j] = pair_bfloat16(first[j], second[j])


@njit(**INNER)
def _words(row, out):
    for j in range(row.size):
        out[j] = bits32(row[j])


@njit(**INNER)
def _narrow(row, out):
    for j in range(row.size):
        out[j] = to_bfloat16(row[j])


@njit(**INNER)
def _scale(row, factor, out):
    for j in range(out.size):
        out[j] = row[j] * factor


@njit(**INNER)
def _add_to(total, row):
    for j in range(row.size):
        total[j] += row[j]


@njit(**INNER)
def _add_scaled(total, factor, row):
    for j in range(row.size):
        total[j] += factor * row[j]


@njit(**INNER)
def _pack(t, weight, paired, tiled, rows):
    """Copy tile ``t`` of the output weights (genes, features) in the order of the products.

    ``tiled`` (tiles, terms, genes of a tile) is for the product over features, ``rows`` (terms, features) for that over genes.
    """
    n_genes, n_features = weight.shape
    if n_genes == 0:
        return
    first = t * TILE
    last = _least(first + TILE, n_genes)
    for g in range(first, last):
        row, c = weight[g], g - first
        if paired:
            for k in range(n_features // 2):
                tiled[t, k, c] = pair_bfloat16(row[2 * k], row[2 * k + 1])
            if n_features % 2:
                tiled[t, n_features // 2, c] = pair_bfloat16(row[n_features - 1], ZERO)
            if g % 2 == 0:
                if g + 1 < last:
                    _pair_rows(row, weight[g + 1], rows[g // 2])
                else:
                    for k in range(n_features):
                        rows[g // 2, k] = pair_bfloat16(row[k], ZERO)
        else:
            for k in range(n_features):
                tiled[t, k, c] = bits32(row[k])
            _words(row, rows[g])


@njit(**INNER)
def _dense(multiply, x, table, bias, out):
    """Compute x table + bias. ``x`` may have more columns than the table has rows; the columns of the table are padded."""
    for n in range(len(out)):
        assign(out[n], bias)
    multiply(
        address(x), 4 * x.shape[1], 4, address(table), 4 * table.shape[1],
        address(out), 4 * out.shape[1], len(out), table.shape[1], len(table), ADD, FLOATS,
    )  # fmt: skip


@njit(**INNER)
def _over_cells(multiply, left, step, right, out):
    """Compute left^T right, the gradient of a small weight matrix; ``left`` is an address, the columns of ``right`` are padded."""
    multiply(
        left, 4, step, address(right), 4 * right.shape[1],
        address(out), 4 * out.shape[1], len(out), right.shape[1], len(right), SET, FLOATS,
    )  # fmt: skip


@njit(**INNER)
def _sum_cells(x, first, out):
    """Sum some columns over the cells."""
    fill(out, ZERO)
    for n in range(len(x)):
        _add_to(out, x[n, first : first + out.size])


@njit(**INNER)
def _turn(encoder, decoder):
    """Copy the weights of the small layers in the order of the products."""
    _, _, head_table, head_bias, mean, log_variance, mean_bias, log_variance_bias = encoder
    into_table, _, into_back, into = decoder
    d = len(mean)
    for j in range(d):
        head_bias[j], head_bias[d + j] = mean_bias[j], log_variance_bias[j]
        for k in range(mean.shape[1]):
            head_table[k, j], head_table[k, d + j] = mean[j, k], log_variance[j, k]
    for j in range(len(into)):
        assign(into_back[j, :d], into[j])
        for k in range(into.shape[1]):
            into_table[k, j] = into[j, k]


@njit(**INNER)
def _dispersions(t, dispersion):
    """Compute the dispersions of a tile of genes and their tables."""
    _, theta, inverse, rising, slope, log_theta = dispersion
    first = t * TILE
    last = _least(first + TILE, theta.shape[1])
    for r in range(len(theta)):
        for g in range(first, last):
            theta[r, g] = exp32(log_theta[r, g])
            inverse[r, g] = ONE / theta[r, g]
        if first < last:
            fill_row_tables(first, last, theta[r], rising[r], slope[r])


@njit(**INNER)
def _sort(cuts, seen):
    """Compute where the entries of every gene and group of cells have their place in gene order.

    Those of gene g are from ``ends[g]`` to ``ends[g + 1]``, in the order of the cells; ``free`` is where those of a group begin.
    """
    rows, indptr, indices, _, ends, free, _, _ = seen
    for i in range(len(free)):
        fill(free[i], 0)
        count_genes(cuts[i], cuts[i + 1], rows, indptr, indices, free[i])
    at = 0
    for g in range(free.shape[1]):
        ends[g] = at
        for i in range(len(free)):
            n = free[i, g]
            free[i, g] = at
            at += n
    ends[free.shape[1]] = at


@njit(**INNER)
def _encode(calls, i, first, last, seen, encoder, conditions, u):
    """Compute the encoder's first layer for a group of cells, and sort its entries by gene."""
    rows, indptr, indices, data, _, free, cells, values = seen
    table, bias = encoder[0], encoder[1]
    encoded, n_genes = conditions[1], free.shape[1]
    calls[ENTRIES](first, last, rows, indptr, indices, data, table[:n_genes], bias, u, free[i], cells, values)
    for n in range(first, last):
        for c in range(encoded.shape[1]):
            if encoded[n, c] != ZERO:
                _add_scaled(u[n], encoded[n, c], table[n_genes + c])


@njit(**INNER)
def _infer(calls, here, encoder, decoder, conditions, latent, h, u_out):
    """Compute posterior, z and the decoder's first layer of some cells from the encoder's hidden layer."""
    multiply = calls[MULTIPLY]
    head_table, head_bias = encoder[2], encoder[3]
    into_table, into_bias = decoder[0], decoder[1]
    condition, _, add_mean, add_z = conditions
    out, eps, scale, z, kl, code, _, _, largest, smallest, _ = latent
    _dense(multiply, h[here], head_table, head_bias, out[here])
    d = eps.shape[1]
    n_body = len(into_table) - d
    for n in range(here.start, here.stop):
        if len(add_mean) > 0:
            _add_to(out[n], add_mean[n])
    calls[POSTERIOR](out[here], largest, smallest, eps[here], scale[here], z[here], kl[here])
    for n in range(here.start, here.stop):
        if len(add_z) > 0:
            _add_to(z[n], add_z[n])
        assign(code[n, :d], z[n])
        assign(code[n, d : d + n_body], condition[n, :n_body])
    _dense(multiply, code[here], into_table, into_bias, u_out[here])


@njit(**INNER)
def _infer_back(calls, here, encoder, decoder, latent, nothing, d_u_out, d_h):
    """Compute the gradient of the encoder's hidden layer from that of the decoder's first layer."""
    multiply = calls[MULTIPLY]
    mean, log_variance, into_back = encoder[4], encoder[5], decoder[2]
    d = len(mean)
    out, eps, scale, _, _, _, d_z, d_out, largest, smallest, d_kl = latent
    _dense(multiply, d_u_out[here], into_back, nothing[: into_back.shape[1]], d_z[here])
    calls[POSTERIOR_BACK](d_z[here], d_kl, out[here], largest, smallest, eps[here], scale[here], d_out[here])
    _dense(multiply, d_out[here], mean, nothing[: mean.shape[1]], d_h[here])
    width, n = 4 * d_h.shape[1], here.stop - here.start
    multiply(
        address(d_out[here]) + 4 * d, 4 * d_out.shape[1], 4, address(log_variance), width,
        address(d_h[here]), width, n, d_h.shape[1], d, ADD, FLOATS,
    )  # fmt: skip


@njit(**INNER)
def _logits(multiply, f, f16, weights, paired, out):
    """Compute the logits of a block of cells without bias, (cells, padded genes)."""
    tiled, n_terms = weights[1], weights[1].shape[1]
    left, step = (address(f16), 2 * f16.shape[1]) if paired else (address(f), 4 * f.shape[1])
    for t in range(len(tiled)):
        multiply(
            left, step, 4, address(tiled) + 4 * t * n_terms * TILE, 4 * TILE,
            address(out) + 4 * t * TILE, 4 * out.shape[1], len(f), TILE, n_terms, SET, paired,
        )  # fmt: skip


@njit(**INNER)
def _features_gradient(multiply, d, d16, weights, paired, keep, out):
    """Compute the product of the gradient of a block's logits with the weights, (cells, padded features)."""
    rows = weights[2]
    left, step = (address(d16), 2 * d16.shape[1]) if paired else (address(d), 4 * d.shape[1])
    for k in range(0, len(rows), TERMS):
        multiply(
            left + 4 * k, step, 4, address(rows) + 4 * k * rows.shape[1], 4 * rows.shape[1],
            address(out), 4 * out.shape[1], len(out), rows.shape[1], _least(TERMS, len(rows) - k), ADD if k > 0 else keep, paired,
        )  # fmt: skip


@njit(**INNER)
def _store(n, last, previous, d, d16, paired, words):
    """Keep the gradient of a cell's logits for the products over genes and over cells, which pair what they sum."""
    if not paired:
        _words(d, words[n])
        return
    _narrow(d, d16[: d.size])
    if n % 2:
        _pair_rows(previous, d, words[n // 2])
    elif n + 1 == last:
        for j in range(d.size):
            words[n // 2, j] = pair_bfloat16(d[j], ZERO)
    else:
        assign(previous, d)


@njit(**INNER)
def _keep_features(first, f, scale, paired, words):
    """Keep the features of a block, times ``scale``, for the product over cells; ``first`` is even."""
    for n in range(len(f)):
        row = f[n]
        if not paired:
            for j in range(row.size):
                words[first + n, j] = bits32(row[j] * scale)
        elif n % 2 == 0:
            out = words[(first + n) // 2]
            if n + 1 < len(f):
                for j in range(row.size):
                    out[j] = pair_bfloat16(row[j] * scale, f[n + 1, j] * scale)
            else:
                for j in range(row.size):
                    out[j] = pair_bfloat16(row[j] * scale, ZERO)


@njit(**INNER)
def _decode(calls, i, first, last, cells, conditions, output, dispersion, decoded, scratch, h, d_h):
    """Compute the likelihood of a group of cells from the decoder's hidden layer, and the gradient of the latter."""
    multiply = calls[MULTIPLY]
    rows, indptr, indices, data, log_library = cells
    location, gate, scale, paired, with_condition = output
    row_theta, theta_rg, inverse_rg, rising, slope, _ = dispersion
    value, d_condition, features, d_theta, d_bias, d_gate_bias = decoded
    condition, width = conditions[0], h.shape[1]
    n_out, n_gates, n_genes = location[0].size, gate[0].size, theta_rg.shape[1]
    memory = row_memory(n_out, n_genes, n_gates)
    d_theta_row, d_gate, w = np.empty(n_genes, np.float32), np.empty(n_gates, np.float32), np.empty(n_gates, np.float32)
    previous, previous_gate = np.empty(n_out, np.float32), np.empty(n_gates, np.float32)
    f, f16, a, a16, g, g16, d_f = scratch
    fill(d_bias[i], ZERO)
    fill(d_gate_bias[i], ZERO)
    for r in range(len(theta_rg)):
        fill(d_theta[i, r], ZERO)
    for start in range(first, last, BLOCK):
        stop = _least(start + BLOCK, last)
        size = stop - start
        for n in range(size):
            assign(f[n, :width], h[start + n])
            if with_condition:
                assign(f[n, width : width + condition.shape[1]], condition[start + n])
            if paired:
                _narrow(f[n], f16[n])
        _keep_features(start, f[:size], scale, paired, features)
        _logits(multiply, f[:size], f16[:size], location, paired, a)
        if n_gates:
            _logits(multiply, f[:size], f16[:size], gate, paired, g)
        for n in range(start, stop):
            r, logits = row_theta[n], a[n - start, :n_out]
            _add_to(logits, location[0])
            if n_gates:
                assign(w, g[n - start, :n_gates])
                _add_to(w, gate[0])
            here = slice(indptr[rows[n]], indptr[rows[n] + 1])
            calls[SCORE](
                indices[here], data[here], log_library[n], theta_rg[r], inverse_rg[r], rising[r], slope[r],
                logits, w, memory, d_theta_row, d_gate, value[n : n + 1],
            )  # fmt: skip
            _add_to(d_bias[i], logits)
            _add_to(d_theta[i, r], d_theta_row)
            _store(n, last, previous, logits, a16[n - start], paired, location[3])
            if n_gates:
                _add_to(d_gate_bias[i], d_gate)
                assign(g[n - start, :n_gates], d_gate)
                _store(n, last, previous_gate, d_gate, g16[n - start], paired, gate[3])
        _features_gradient(multiply, a, a16, location, paired, SET, d_f[:size])
        if n_gates:
            _features_gradient(multiply, g, g16, gate, paired, ADD, d_f[:size])
        for n in range(start, stop):
            _scale(d_f[n - start], scale, d_h[n])
            if with_condition:
                _scale(d_f[n - start, width:], scale, d_condition[n])


@njit(**INNER)
def _norm(calls, here, layer, settings, statistics):
    """Apply norm, ReLU and dropout to some cells, or to all with a batch norm."""
    u, standard, h, inverse_sd, _, _ = layer
    gain, shift, eps, random, limit, factor = settings
    calls[NORM](
        u[here], gain, shift, eps, random[here], limit, factor, standard[here], h[here], inverse_sd[here.start :],
        statistics[0], statistics[1],
    )  # fmt: skip


@njit(**INNER)
def _norm_back(calls, here, layer, settings, sums, d_gain, d_shift):
    _, standard, h, inverse_sd, d_h, d_u = layer
    gain, factor = settings[0], settings[5]
    calls[NORM_BACK](
        d_h[here], h[here], standard[here], inverse_sd[here.start :], gain, factor, d_u[here], sums[d_gain], sums[d_shift]
    )  # fmt: skip


@njit(**INNER)
def _output_weights(multiply, t, words, features, paired, d_weight):
    """Compute the gradient of a tile of output weights."""
    first = t * TILE
    last = _least(first + TILE, len(d_weight))
    if last <= first:
        return
    out = np.empty((last - first, features.shape[1]), np.float32)
    multiply(
        address(words) + 4 * first, 4, 4 * words.shape[1], address(features), 4 * features.shape[1],
        address(out), 4 * out.shape[1], len(out), out.shape[1], len(features), SET, paired,
    )  # fmt: skip
    for g in range(first, last):
        assign(d_weight[g], out[g - first, : d_weight.shape[1]])


@njit(**INNER)
def _sum_groups(sums, scale, first, last, out):
    """Add up the sums of all groups for some genes."""
    for j in range(first, _least(last, out.size)):
        total = ZERO
        for i in range(len(sums)):
            total += sums[i, j]
        out[j] = scale * total


@njit(**INNER)
def _gene_weights(calls, t, seen, output, decoded, d_u, gradients):
    """Compute the gradients of all weights of a tile of genes."""
    multiply = calls[MULTIPLY]
    _, _, _, _, ends, _, cells, values = seen
    location, gate, scale, paired, _ = output
    _, _, features, d_theta, d_bias, d_gate_bias = decoded
    d_table, d_weight, d_gate_weight, d_bias_out, d_gate_bias_out, d_theta_out = gradients[0]
    _output_weights(multiply, t, location[3], features, paired, d_weight)
    _output_weights(multiply, t, gate[3], features, paired, d_gate_weight)
    first, last = t * TILE, t * TILE + TILE
    _sum_groups(d_bias, scale, first, last, d_bias_out)
    _sum_groups(d_gate_bias, scale, first, last, d_gate_bias_out)
    for r in range(len(d_theta_out)):
        _sum_groups(d_theta[:, r], scale, first, last, d_theta_out[r])
    calls[GATHER](first, _least(last, ends.size - 1), ends, cells, values, d_u, d_table)


@njit(**INNER)
def _other_weights(calls, job, seen, conditions, layer_in, layer_out, latent, sums, gradients):
    """Compute the gradients of the other weights, in :data:`SMALL_JOBS` jobs."""
    multiply = calls[MULTIPLY]
    code, d_out = latent[5], latent[7]
    d_mean, d_log_variance, d_into, d_mean_bias, d_log_variance_bias, d_into_bias, d_first_bias = gradients[1]
    if job == 0:
        d, step = len(d_mean), 4 * d_out.shape[1]
        _over_cells(multiply, address(d_out), step, layer_in[2], d_mean)
        _over_cells(multiply, address(d_out) + 4 * d, step, layer_in[2], d_log_variance)
        _sum_cells(d_out, 0, d_mean_bias)
        _sum_cells(d_out, d, d_log_variance_bias)
    elif job == 1:
        d_u = layer_out[5]
        wide = np.empty((len(d_into), code.shape[1]), np.float32)
        _over_cells(multiply, address(d_u), 4 * d_u.shape[1], code, wide)
        for j in range(len(d_into)):
            assign(d_into[j], wide[j, : d_into.shape[1]])
        _sum_cells(d_u, 0, d_into_bias)
    elif job == 2:
        encoded, d_table, n_genes = conditions[1], gradients[0][0], seen[4].size - 1
        if encoded.shape[1] > 0:
            _over_cells(multiply, address(encoded), 4 * encoded.shape[1], layer_in[5], d_table[n_genes:])
        _sum_cells(layer_in[5], 0, d_first_bias)
    else:
        for k in range(4):
            _sum_cells(sums[:, k], 0, gradients[2][k])


@njit(error_model="numpy", nogil=True, **CACHED)
def region(
    board, calls, plan, cuts, cells, seen, conditions, encoder, decoder, output, dispersion, settings_in, settings_out,
    layer_in, layer_out, latent, decoded, scratch, sums, statistics, gradients, nothing,
):  # fmt: skip
    """Compute the likelihood of a minibatch, and the gradient of its loss with respect to all weights.

    Several threads make this call at the same time and share its parts, which ``board`` counts. Each row of ``plan`` is a
    round: its kind, its first and last stage, and its number of parts. ``cuts`` divide the cells into groups. What the other
    arguments hold: see :class:`vxpress.core.kernels.step.StepMemory`.
    """
    by_cell = calls[BY_CELL]
    # every thread has its own part of the scratch memory
    me = take(board, len(plan))
    f, f16, a, a16, g, g16, d_f = scratch
    mine = f[me], f16[me], a[me], a16[me], g[me], g16[me], d_f[me]
    for k in range(len(plan)):
        kind, stage, end, n = plan[k, 0], plan[k, 1], plan[k, 2], plan[k, 3]
        part = take(board, k)
        while part < n:
            if kind == PACK:
                if part == 0:
                    _sort(cuts, seen)
                elif part == 1:
                    _turn(encoder, decoder)
                else:
                    _dispersions(part - 2, dispersion)
                    _pack(part - 2, output[0][4], output[3], output[0][1], output[0][2])
                    _pack(part - 2, output[1][4], output[3], output[1][1], output[1][2])
            elif kind == CELLS:
                first, last = cuts[part], cuts[part + 1]
                here = slice(first, last)
                if stage <= ENCODE < end:
                    _encode(calls, part, first, last, seen, encoder, conditions, layer_in[0])
                    if by_cell:
                        _norm(calls, here, layer_in, settings_in, statistics)
                if stage <= INFER < end:
                    _infer(calls, here, encoder, decoder, conditions, latent, layer_in[2], layer_out[0])
                    if by_cell:
                        _norm(calls, here, layer_out, settings_out, statistics)
                if stage <= DECODE < end:
                    _decode(
                        calls,
                        part,
                        first,
                        last,
                        cells,
                        conditions,
                        output,
                        dispersion,
                        decoded,
                        mine,
                        layer_out[2],
                        layer_out[4],
                    )
                    if by_cell:
                        _norm_back(calls, here, layer_out, settings_out, sums[part], 2, 3)
                if stage <= INFER_BACK < end:
                    _infer_back(calls, here, encoder, decoder, latent, nothing, layer_out[5], layer_in[4])
                    if by_cell:
                        _norm_back(calls, here, layer_in, settings_in, sums[part], 0, 1)
            elif kind == ALL_CELLS:
                everywhere = slice(0, cuts[-1])
                if stage == INFER:
                    _norm(calls, everywhere, layer_in, settings_in, statistics)
                elif stage == DECODE:
                    _norm(calls, everywhere, layer_out, settings_out, statistics[2:])
                elif stage == INFER_BACK:
                    _norm_back(calls, everywhere, layer_out, settings_out, sums[0], 2, 3)
                else:
                    _norm_back(calls, everywhere, layer_in, settings_in, sums[0], 0, 1)
            elif part < SMALL_JOBS:
                _other_weights(calls, part, seen, conditions, layer_in, layer_out, latent, sums, gradients)
            else:
                _gene_weights(calls, part - SMALL_JOBS, seen, output, decoded, layer_in[5], gradients)
            finish(board, k)
            part = take(board, k)
        meet(board, k, n)
