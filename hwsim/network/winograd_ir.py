"""The transforms of Winograd's F(4x4, 3x3) as vector instructions, built like those of `vector_ir.py`.

Each takes six (or four) rows of numbers, a fixed distance apart, to six (or four) others:

    PATCH   B' r: six to six           SPREAD   A e: four to six           TILE   A' m: six to four

All rows are loaded once and every result is stored once, which plain loops over one result at a time do not reach.
Results are stored as float32, or rounded to bf16 (to the nearest; halves up).
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from hwsim.network.vector_ir import LANES, VECTOR, address, load, store

PATCH, SPREAD, TILE = 0, 1, 2
_I64 = ir.IntType(64)


def _constant(value: float):
    return ir.Constant(VECTOR, [value] * LANES)


class _Sum:
    """Vector arithmetic by operators."""

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    def __add__(self, other: "_Sum") -> "_Sum":
        return _Sum(self.builder, self.builder.fadd(self.value, other.value))

    def __sub__(self, other: "_Sum") -> "_Sum":
        return _Sum(self.builder, self.builder.fsub(self.value, other.value))

    def times(self, factor: float, plus: "_Sum") -> "_Sum":
        """self factor + plus, rounded once."""
        name = f"llvm.fma.v{LANES}f32"
        call = self.builder.module.declare_intrinsic(name, (), ir.FunctionType(VECTOR, [VECTOR] * 3))
        return _Sum(self.builder, self.builder.call(call, [self.value, _constant(factor), plus.value]))


def _patch(r: list[_Sum]) -> list[_Sum]:
    outer, inner = r[2].times(-4, r[4]), r[1].times(-4, r[3])
    far, near = r[4] - r[2], r[3] - r[1]
    return [
        r[0].times(4, r[2].times(-5, r[4])), outer + inner, outer - inner, near.times(2, far), near.times(-2, far),
        r[1].times(4, r[3].times(-5, r[5])),
    ]  # fmt: skip


def _spread(e: list[_Sum]) -> list[_Sum]:
    even, odd = e[0] + e[2], e[1] + e[3]
    even_far = e[2].times(4, e[0])
    odd_far = e[3].times(4, e[1])
    return [e[0], even + odd, even - odd, odd_far.times(2, even_far), odd_far.times(-2, even_far), e[3]]


def _tile(m: list[_Sum]) -> list[_Sum]:
    near, near_odd = m[1] + m[2], m[1] - m[2]
    far, far_odd = m[3] + m[4], m[3] - m[4]
    return [m[0] + near + far, far_odd.times(2, near_odd), far.times(4, near), far_odd.times(8, near_odd + m[5])]


def _store_rounded(builder, value, pointer, number: int) -> None:
    """The upper halves of float32 numbers, rounded, as int16."""
    words, halves = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.IntType(16), LANES)
    up = builder.add(builder.bitcast(value, words), ir.Constant(words, [0x8000] * LANES))
    store(builder, builder.trunc(builder.lshr(up, ir.Constant(words, [16] * LANES)), halves), pointer, number, halves)


_TRANSFORMS = {PATCH: (6, 6, _patch), SPREAD: (4, 6, _spread), TILE: (6, 4, _tile)}


@intrinsic(prefer_literal=True)
def transform(typingctx, out, o, out_step, x, i, in_step, count, which):
    """out[o + row out_step + k] for every row and k < count, from x[i + row in_step + k]; count: a multiple of LANES.

    x is a flat float32 array, out one too or of int16, for bf16; which is a constant: PATCH, SPREAD or TILE.
    """
    if not isinstance(which, types.IntegerLiteral):
        return None
    put = _store_rounded if out.dtype == types.int16 else store
    rows_in, rows_out, equations = _TRANSFORMS[which.literal_value]
    signature = types.void(out, types.int64, types.int64, x, *(types.int64,) * 3, which)

    def code(context, builder, signature, args):
        target = builder.gep(address(context, builder, signature, args, 0), [args[1]])
        source = builder.gep(address(context, builder, signature, args, 3), [args[4]])
        to = [builder.gep(target, [builder.mul(args[2], _I64(r))]) for r in range(rows_out)]
        of = [builder.gep(source, [builder.mul(args[5], _I64(r))]) for r in range(rows_in)]
        head = builder.block
        body, end = (builder.append_basic_block(name) for name in ("vector", "done"))
        builder.cbranch(builder.icmp_signed(">", args[6], _I64(0)), body, end)
        builder.position_at_end(body)
        k = builder.phi(_I64)
        k.add_incoming(_I64(0), head)
        rows = [_Sum(builder, load(builder, builder.gep(row, [k]), 0)) for row in of]
        for row, value in zip(to, equations(rows), strict=True):
            put(builder, value.value, builder.gep(row, [k]), 0)
        following = builder.add(k, _I64(LANES))
        k.add_incoming(following, body)
        builder.cbranch(builder.icmp_signed("<", following, args[6]), body, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, code
