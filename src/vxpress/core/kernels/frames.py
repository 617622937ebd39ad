"""Jobs of compiled code, and frames: the arrays that they read and write.

A compiled function with many arrays as arguments takes long to compile, and Numba examines each of them at every call. A job
has one argument for all: the address of a *frame*, a table of addresses and shapes. Its places are the *slots* of a
layout. A slot is written in Python, which checks type and layout of the array (``frame[X] = x``), and read in compiled code, which
knows both (``x = X(frame)``). A job is compiled when it is first needed, once for all calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, from_dtype, types
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from vxpress.core.kernels import compiling, helpers, parts
from vxpress.core.kernels.team import CACHED

_I64 = ir.IntType(64)
# words of a slot: address (or the number itself) and up to three lengths
WORDS = 4


def floats(*shape: int) -> np.ndarray:
    """Return zeros in float32, in memory of torch, which starts at a cache line."""
    return torch.zeros(shape).numpy()


class Layout:
    """The slots of a kind of frame, in the order of their definition."""

    def __init__(self) -> None:
        self.kinds: dict[Any, tuple[int, np.dtype, int]] = {}

    def array(self, dtype: Any, n_dimensions: int) -> Any:
        """Define the slot of a contiguous array; compiled code calls it with the frame's address to get the array."""
        number, element = len(self.kinds), from_dtype(np.dtype(dtype))
        kind = types.Array(element, n_dimensions, "C")

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            words = _words(builder, args[0], number)
            first, *shape = (builder.load(builder.gep(words, [_I64(k)])) for k in range(n_dimensions + 1))
            width = np.dtype(dtype).itemsize
            strides = [_I64(width)]
            for length in reversed(shape[1:]):
                strides.insert(0, builder.mul(strides[0], length))
            array = context.make_array(kind)(context, builder)
            data = builder.inttoptr(first, context.get_data_type(element).as_pointer())
            populate_array(array, data, shape, strides, _I64(width), None)
            return array._getvalue()

        return self._slot(number, kind, generate, np.dtype(dtype), n_dimensions)

    def number(self, dtype: Any) -> Any:
        """Define the slot of a number."""
        number, kind = len(self.kinds), from_dtype(np.dtype(dtype))

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            words = _words(builder, args[0], number)
            return builder.load(builder.bitcast(words, context.get_data_type(kind).as_pointer()))

        return self._slot(number, kind, generate, np.dtype(dtype), 0)

    def frame(self) -> Any:
        """Define the slot of another frame, whose address it gives."""
        return self.number(np.int64)

    def _slot(self, number: int, kind: Any, generate: Callable[..., Any], dtype: np.dtype, n_dimensions: int) -> Any:
        @intrinsic
        def slot(typingctx: Any, frame: Any) -> Any:
            return kind(types.int64), generate

        self.kinds[slot] = number, dtype, n_dimensions
        return slot


def _words(builder: Any, frame: Any, number: int) -> Any:
    return builder.inttoptr(builder.add(frame, _I64(8 * WORDS * number)), _I64.as_pointer())


class Frame:
    """Addresses and shapes of arrays, which it keeps alive."""

    def __init__(self, layout: Layout) -> None:
        self.kinds = layout.kinds
        self.words = np.zeros((len(self.kinds), WORDS), np.int64)
        self.kept: list[Any] = [None] * len(self.kinds)
        self.address: int = self.words.ctypes.data

    def __setitem__(self, slot: Any, value: Any) -> None:
        number, dtype, n_dimensions = self.kinds[slot]
        if isinstance(value, Frame):
            self.kept[number], self.words[number, 0] = value, value.address
        elif n_dimensions == 0:
            self.words[number].view(dtype)[0] = value
        else:
            if value.dtype != dtype or value.ndim != n_dimensions or not value.flags.c_contiguous:
                msg = f"slot {number} is a contiguous {dtype} array of {n_dimensions} dimensions, not {value.dtype}{value.shape}"
                raise TypeError(msg)
            if self.kept[number] is not value:
                words = self.words[number]
                words[0], words[1 : n_dimensions + 1] = value.__array_interface__["data"][0], value.shape
                self.kept[number] = value

    def __getitem__(self, slot: Any) -> Any:
        return self.kept[self.kinds[slot][0]]

    def update(self, values: dict[Any, Any]) -> None:
        """Write several slots."""
        for slot, value in values.items():
            self[slot] = value


class Job:
    """A function of a frame, a part and a thread (numbers from 0), which is compiled when it is first needed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @functools.cached_property
    def compiled(self) -> Any:
        kinds = types.void(types.int64, types.int64, types.int64)
        with compiling.no_collection:
            try:
                return cfunc(kinds, error_model="numpy", **CACHED)(self.function)
            except OSError:
                # the cache cannot be written, for example because the disk is full
                return cfunc(kinds, error_model="numpy")(self.function)

    @property
    def address(self) -> int:
        """Return where its code is."""
        return self.compiled.address


def job(function: Callable[..., Any]) -> Job:
    """Make a job of a function; it runs without the GIL, and must not raise errors or ask for memory."""
    return Job(function)


# jobs that follow each other for the same part, and the number of such parts or the parts
Steps = Sequence[tuple[Job, Frame]]
Round = Sequence[tuple[Steps, int]]


class Plan:
    """Rounds of parts; all parts of a round are done before the next one begins.

    A round consists of jobs with their number of parts. Several threads share the parts of a round, see :mod:`.parts`.
    """

    def __init__(self, *rounds: Round) -> None:
        jobs: list[tuple[int, int]] = []
        tasks: list[tuple[int, int, int]] = []
        ends: list[int] = []
        for round_ in rounds:
            for steps, n_parts in round_:
                first = len(jobs)
                jobs += [(job.address, frame.address) for job, frame in steps]
                tasks += [(first, len(jobs), part) for part in range(n_parts)]
            ends.append(len(tasks))
        self.frames = [frame for round_ in rounds for steps, _ in round_ for _, frame in steps]
        self.arrays = np.array(jobs, np.int64), np.array(tasks, np.int64), np.array(ends, np.int64)
        self.most_parts = int(np.diff(ends, prepend=0).max())

    def run(self, n_threads: int) -> None:
        """Run the jobs in up to ``n_threads`` threads."""
        jobs, tasks, ends = self.arrays
        helpers.run(min(n_threads, self.most_parts), parts.rounds, len(ends) + 1, jobs, tasks, ends, kept=self.frames)
