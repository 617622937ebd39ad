"""Parts of a compiled call that several threads share: each takes the next part until none is left.

All threads run the same compiled function. It goes through rounds of parts; a thread that finds no part left waits until
the others have finished theirs. So a thread that is late, because another program uses its processor, finds less to do
instead of holding up the others. The numbers that the threads share are counted in an array, the *board*.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from vxpress.core.kernels.team import CACHED, INNER

_I64 = ir.IntType(64)
# numbers of different rounds are in different cache lines
LINE = 8
TAKEN, DONE = 0, LINE
# added to all numbers to end a call: no part is left, and none is waited for
OVER = 1 << 40
# checks of a number before the thread sleeps, about 40 microseconds
SPINS = 1000


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    board = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(board.data, [args[1]])


@intrinsic
def _add(typingctx: Any, board: Any, at: Any, value: Any) -> Any:
    """Add to a number that other threads change too; return the number before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _place(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(board, types.int64, types.int64), generate


@intrinsic
def _read(typingctx: Any, board: Any, at: Any) -> Any:
    """Read a number that other threads change, and all that they wrote before they changed it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_place(context, builder, signature, args), "seq_cst", 8)

    return types.int64(board, types.int64), generate


# sleep as short as the system can, about 50 microseconds. A thread that offered its processor instead would lose its turn to
# other programs for milliseconds, while the parts that it waits for are done long before
_pause: Any = types.ExternalFunction("usleep", types.int32(types.uint32))
_offer: Any = types.ExternalFunction("SwitchToThread", types.int32())
CAN_SLEEP = os.name != "nt"


@njit(**INNER)
def take(board, round_):
    """Return the next part of a round, from 0; there may be fewer parts."""
    return _add(board, 2 * LINE * round_ + TAKEN, 1)


@njit(**INNER)
def finish(board, round_):
    """Report that a part is done."""
    _add(board, 2 * LINE * round_ + DONE, 1)


@njit(**INNER)
def meet(board, round_, n):
    """Wait until all parts of a round are done."""
    spins = 0
    while _read(board, 2 * LINE * round_ + DONE) < n:
        spins += 1
        if spins > SPINS:
            if CAN_SLEEP:
                _pause(1)
            else:
                _offer()


@intrinsic
def call(typingctx: Any, job: Any, frame: Any, part: Any, thread: Any) -> Any:
    """Call the job whose code is at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@njit(error_model="numpy", nogil=True, **CACHED)
def rounds(board, jobs, tasks, ends):
    """Do the tasks of a :class:`vxpress.core.kernels.frames.Plan` together with the other threads that make this call.

    Each of ``jobs`` is the address of its code and that of its frame. Each of ``tasks`` is the range of its jobs, and the part for
    which they are done. Round k consists of the tasks before ``ends[k]``.
    """
    thread, start = take(board, len(ends)), 0
    for k in range(len(ends)):
        n = ends[k] - start
        i = take(board, k)
        while i < n:
            task = start + i
            for j in range(tasks[task, 0], tasks[task, 1]):
                call(jobs[j, 0], jobs[j, 1], tasks[task, 2], thread)
            finish(board, k)
            i = take(board, k)
        meet(board, k, n)
        start = ends[k]


def board(n_rounds: int) -> np.ndarray:
    """Return an empty board."""
    return np.zeros(2 * LINE * n_rounds, np.int64)
