"""Matrix products as vector instructions, for use inside compiled loops, where BLAS and torch cannot be called.

Matrices consist of *words* of four bytes: a float32, or two bfloat16 that follow each other along the axis that is summed.
A block of rows x columns of the result stays in registers while its terms are added (Goto & van de Geijn 2008). Each
element has its terms added in the order of the summed axis, so results do not depend on how the work is divided.

The instructions are written as LLVM vectors, as wide as the processor's registers: AVX-512, AVX2 or NEON. Loops of Numba
on arrays reach a fraction of this speed, because the compiler does not keep such a block in registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from vxpress.core import rule
from vxpress.core.kernels.team import CACHED, INNER

_I64, _I32, _F32 = ir.IntType(64), ir.IntType(32), ir.FloatType()
# columns of a matrix are padded to a multiple of this, which is a multiple of every vector's length
COLUMNS = 16
# columns of a packed tile
TILE = 48


class _BFloat16(ir.Type):  # type: ignore[misc]  # llvmlite carries no types
    """The type of LLVM that llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat16)

    def __hash__(self) -> int:
        return hash(_BFloat16)


def _features() -> set[str]:
    """Return the instructions for which numba compiles: those of this processor, or of ``NUMBA_CPU_FEATURES``."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return {name[1:] for name in features.split(",") if name.startswith("+")}


def _shape(features: set[str]) -> tuple[int, int, int]:
    """Return floats per vector, and rows and vectors of a block, so that it fills the registers but for operands."""
    if "avx512f" in features:
        return 16, 8, 3
    if {"avx2", "fma"} <= features:
        return 8, 4, 3
    return 4, 8, 3


FEATURES = _features()
WIDTH, ROWS, VECTORS = _shape(FEATURES)


@njit(**INNER)
def tile(t, n_genes):
    """Return the first gene of a tile, and the one after its last."""
    first = t * TILE
    return first, first + TILE if first + TILE < n_genes else n_genes


@intrinsic
def address(typingctx: Any, array: Any) -> Any:
    """Return the address of an array's first element."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.ptrtoint(found.data, _I64)

    return types.int64(array), generate


class _Block:
    """Code of c += a b for a block of ``rows`` x ``vectors`` of the result."""

    def __init__(self, rows: int, vectors: int, *, paired: bool) -> None:
        self.rows, self.vectors, self.paired = rows, vectors, paired
        self.floats = ir.VectorType(_F32, WIDTH)
        self.word = _I32 if paired else _F32
        self.words = ir.VectorType(self.word, WIDTH)

    def intrinsic(self) -> Any:
        """Return it as a function of addresses and steps in bytes, of the number of terms, and of whether c is kept."""

        @intrinsic
        def block(typingctx: Any, a: Any, a_row: Any, a_term: Any, b: Any, b_term: Any, c: Any, c_row: Any, n_terms: Any, keep: Any) -> Any:  # fmt: skip
            return types.void(*[types.int64] * 9), self.generate

        return block

    def generate(self, context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, a_row, a_term, b, b_term, c, c_row, n_terms, keep = args
        blocks = [(r, v) for r in range(self.rows) for v in range(self.vectors)]
        at = {
            (r, v): self._pointer(builder, builder.add(c, builder.mul(c_row, _I64(r))), v, self.floats)
            for r, v in blocks
        }
        sums = {key: cgutils.alloca_once(builder, self.floats) for key in blocks}
        with builder.if_else(builder.icmp_signed("!=", keep, _I64(0))) as (kept, fresh):
            with kept:
                for key in blocks:
                    builder.store(builder.load(at[key], align=4), sums[key])
            with fresh:
                for key in blocks:
                    builder.store(ir.Constant(self.floats, None), sums[key])
        starts = [builder.add(a, builder.mul(a_row, _I64(r))) for r in range(self.rows)]
        with cgutils.for_range(builder, n_terms) as loop:
            b_here = builder.add(b, builder.mul(loop.index, b_term))
            a_here = builder.mul(loop.index, a_term)
            right = [builder.load(self._pointer(builder, b_here, v, self.words), align=4) for v in range(self.vectors)]
            for r in range(self.rows):
                where = builder.inttoptr(builder.add(starts[r], a_here), self.word.as_pointer())
                left = self._spread(builder, builder.load(where, align=4))
                for v in range(self.vectors):
                    total = sums[r, v]
                    builder.store(self._multiply_add(builder, left, right[v], builder.load(total)), total)
        for key in blocks:
            builder.store(builder.load(sums[key]), at[key], align=4)
        return context.get_dummy_value()

    def _pointer(self, builder: Any, start: Any, v: int, kind: Any) -> Any:
        return builder.inttoptr(builder.add(start, _I64(v * WIDTH * 4)), kind.as_pointer())

    def _spread(self, builder: Any, word: Any) -> Any:
        nothing = ir.Constant(self.words, ir.Undefined)
        one = builder.insert_element(nothing, word, _I32(0))
        return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(_I32, WIDTH), [0] * WIDTH))

    def _multiply_add(self, builder: Any, left: Any, right: Any, total: Any) -> Any:
        if not self.paired:
            kind, name, args = self.floats, f"llvm.fma.v{WIDTH}f32", [left, right, total]
        else:
            kind, name = ir.VectorType(_BFloat16(), 2 * WIDTH), f"llvm.x86.avx512bf16.dpbf16ps.{32 * WIDTH}"
            args = [total, builder.bitcast(left, kind), builder.bitcast(right, kind)]
        function = ir.FunctionType(self.floats, [arg.type for arg in args])
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


# only AVX-512 has the instruction that is used; elsewhere pairs are never passed
PAIRED = WIDTH == 16 and "avx512bf16" in FEATURES and rule.native_bfloat16()
_floats, _floats_row = (_Block(rows, VECTORS, paired=False).intrinsic() for rows in (ROWS, 1))
_floats_narrow, _floats_row_narrow = (_Block(rows, 1, paired=False).intrinsic() for rows in (ROWS, 1))
_pairs, _pairs_row = (_Block(rows, VECTORS, paired=PAIRED).intrinsic() for rows in (ROWS, 1))
_pairs_narrow, _pairs_row_narrow = (_Block(rows, 1, paired=PAIRED).intrinsic() for rows in (ROWS, 1))
# bytes of a block's columns; narrow blocks of one vector end a row at any multiple of :data:`COLUMNS`
_WIDE, _NARROW = 4 * VECTORS * WIDTH, 4 * WIDTH


def _product(a, a_row, a_term, b, b_term, c, c_row, n_rows, n_columns, n_terms, keep, paired):
    """Compute c = a b, or add it to c with ``keep``; all places and steps are addresses in bytes.

    ``n_columns`` is a multiple of :data:`COLUMNS`. The word of row r and term k of ``a`` is at ``a + r a_row + k a_term``, that of term k
    and column j of ``b`` at ``b + k b_term + 4 j``; with ``paired``, it holds two bfloat16.
    """
    column, end = 0, 4 * n_columns
    while column < end:
        wide = column + _WIDE <= end
        r = 0
        while r < n_rows:
            left, right, out = a + r * a_row, b + column, c + r * c_row + column
            whole = r + ROWS <= n_rows
            if paired:
                if wide and whole:
                    _pairs(left, a_row, a_term, right, b_term, out, c_row, n_terms, keep)
                elif wide:
                    _pairs_row(left, a_row, a_term, right, b_term, out, c_row, n_terms, keep)
                elif whole:
                    _pairs_narrow(left, a_row, a_term, right, b_term, out, c_row, n_terms, keep)
                else:
                    _pairs_row_narrow(left, a_row, a_term, right, b_term, out, c_row, n_terms, keep)
            elif wide and whole:
                _floats(left, a_row, a_term, right, b_term, out, c_row, n_terms, keep)
            elif wide:
                _floats_row(left, a_row, a_term, right, b_term, out, c_row, n_terms, keep)
            elif whole:
                _floats_narrow(left, a_row, a_term, right, b_term, out, c_row, n_terms, keep)
            else:
                _floats_row_narrow(left, a_row, a_term, right, b_term, out, c_row, n_terms, keep)
            r += ROWS if whole else 1
        column += _WIDE if wide else _NARROW


# a pointer, which compiled functions take as an argument, or a symbol, which :func:`multiply` calls: otherwise its code would be
# compiled again in each of them
product = cfunc(types.void(*[types.int64] * 11, types.boolean), **CACHED)(_product)
_SYMBOL = "vxpress_product"
binding.add_symbol(_SYMBOL, product.address)


@intrinsic
def multiply(typingctx, a, a_row, a_term, b, b_term, c, c_row, n_rows, n_columns, n_terms, keep, paired):
    """Call :data:`product`."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 11 + [ir.IntType(8)])
        function = cgutils.get_or_insert_function(builder.module, kind, _SYMBOL)
        builder.call(function, [*args[:-1], builder.trunc(args[-1], ir.IntType(8))])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12), generate


def padded(n: int) -> int:
    """Return the least multiple of :data:`COLUMNS` that is not below ``n``."""
    return -(-n // COLUMNS) * COLUMNS
