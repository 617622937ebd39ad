"""Sums of rows of a table, weighted, as vector instructions for use inside compiled loops.

A part of the sum stays in registers while all rows are added. Loops of Numba load and store it again for each row, because
the compiler does not know how long it is.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vxpress.core.kernels.products import WIDTH

_I64, _I32, _F32 = ir.IntType(64), ir.IntType(32), ir.FloatType()
_FLOATS = ir.VectorType(_F32, WIDTH)
VECTORS = 8
# columns that one call of the wide form adds
WIDE = VECTORS * WIDTH


def _adder(n_vectors: int) -> Any:
    """Return a function of addresses and of the step between rows in bytes: at (int32), values, table, step, out, number of rows."""

    @intrinsic
    def add(typingctx: Any, at: Any, values: Any, table: Any, step: Any, out: Any, n: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at, values, table, step, out, n = args

            def vector(start: Any, v: int) -> Any:
                return builder.inttoptr(builder.add(start, _I64(4 * WIDTH * v)), _FLOATS.as_pointer())

            def number(start: Any, k: Any, kind: Any) -> Any:
                place = builder.add(start, builder.mul(k, _I64(4)))
                return builder.load(builder.inttoptr(place, kind.as_pointer()), align=4)

            kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
            multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32")
            nothing, everywhere = (
                ir.Constant(_FLOATS, ir.Undefined),
                ir.Constant(ir.VectorType(_I32, WIDTH), [0] * WIDTH),
            )
            sums = [cgutils.alloca_once(builder, _FLOATS) for _ in range(n_vectors)]
            for v, total in enumerate(sums):
                builder.store(builder.load(vector(out, v), align=4), total)
            with cgutils.for_range(builder, n) as loop:
                value = builder.insert_element(nothing, number(values, loop.index, _F32), _I32(0))
                value = builder.shuffle_vector(value, nothing, everywhere)
                row = builder.add(table, builder.mul(builder.sext(number(at, loop.index, _I32), _I64), step))
                for v, total in enumerate(sums):
                    weights = builder.load(vector(row, v), align=4)
                    builder.store(builder.call(multiply_add, [value, weights, builder.load(total)]), total)
            for v, total in enumerate(sums):
                builder.store(builder.load(total), vector(out, v), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return add


add_rows, add_rows_narrow = _adder(VECTORS), _adder(1)
