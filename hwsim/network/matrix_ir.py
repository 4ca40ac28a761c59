"""A small matrix product as vector instructions, built like those of `vector_ir.py`: the sums of a tile of four rows
stay in registers while the depth goes by.

torch multiplies many small matrices at 70 to 80 % of the speed that this reaches (36 products of 682 x 64 x 64, one
thread: 2.9 ms against 1.9 ms, of 170 x 256 x 256: 10.2 ms against 8.9 ms).

Factors may also be bf16, two to a word of 32 bits that stand one behind the other in depth. A processor with AVX-512
BF16 multiplies and adds both in one instruction; the sums are float32.
"""

import llvmlite.binding
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from hwsim.network.vector_ir import LANES, VECTOR, WIDE, address, has, load, store

ROWS = 4
"""Rows of a tile."""
PAIRS = WIDE and has("avx512bf16")
"""Whether the processor multiplies bf16."""
llvmlite.binding.initialize_native_asmparser()  # for the one instruction that is given as text
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_WORDS, _HALVES = ir.VectorType(_I32, LANES), ir.VectorType(ir.IntType(16), LANES)


def _added(builder, left, right, total):
    """total + left right, rounded once."""
    fma = builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", (), ir.FunctionType(VECTOR, [VECTOR] * 3))
    return builder.call(fma, [left, right, total])


def _added_pairs(builder, left, right, total):
    """total + both products of two pairs of bf16. As text: what its operands are called differs between LLVMs."""
    kind = ir.FunctionType(VECTOR, [_WORDS, _WORDS, VECTOR])
    return builder.asm(kind, "vdpbf16ps $2, $1, $0", "=v,v,v,0", [left, right, total], False)


@intrinsic(prefer_literal=True)
def multiply(typingctx, out, o, o_row, a, i, a_row, a_step, b, j, b_row, depth, rows, vectors, adds):
    """out[o + r o_row + k] = sum over d < depth: a[i + r a_row + d a_step] b[j + d b_row + k].

    r < rows, k < vectors LANES; out, a and b are flat float32 arrays; rows, vectors and adds are constants; depth >= 1.
    adds: 1 adds the sum to what is there. With a and b of int32 words a product is that of both pairs of bf16, added.
    """
    if not all(isinstance(constant, types.IntegerLiteral) for constant in (rows, vectors, adds)):
        return None
    pairs = a.dtype == types.int32
    down, across, more = rows.literal_value, vectors.literal_value, adds.literal_value
    n = types.int64
    signature = types.void(out, n, n, a, n, n, n, b, n, n, n, rows, vectors, adds)

    def code(context, builder, signature, args):
        def at(array: int, first: int):
            return builder.gep(address(context, builder, signature, args, array), [args[first]])

        of = [builder.gep(at(3, 4), [builder.mul(args[5], _I64(r))]) for r in range(down)]
        beside, head, body = at(7, 8), builder.block, builder.append_basic_block("depth")
        added = _added_pairs if pairs else _added
        builder.branch(body)
        builder.position_at_end(body)
        d = builder.phi(_I64)
        d.add_incoming(_I64(0), head)
        sums = [builder.phi(VECTOR) for _ in range(down * across)]
        for phi in sums:
            phi.add_incoming(ir.Constant(VECTOR, [0.0] * LANES), head)
        row = builder.gep(beside, [builder.mul(d, args[9])])
        kind = _WORDS if pairs else VECTOR
        right = [load(builder, row, v, kind) for v in range(across)]
        nothing, everywhere = ir.Constant(kind, ir.Undefined), ir.Constant(_WORDS, [0] * LANES)
        new = []
        for r in range(down):
            one = builder.load(builder.gep(of[r], [builder.mul(d, args[6])]))
            left = builder.shuffle_vector(builder.insert_element(nothing, one, _I32(0)), nothing, everywhere)
            new += [added(builder, left, right[v], sums[r * across + v]) for v in range(across)]
        following = builder.add(d, _I64(1))
        d.add_incoming(following, body)
        for phi, value in zip(sums, new, strict=True):
            phi.add_incoming(value, body)
        end = builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", following, args[10]), body, end)
        builder.position_at_end(end)
        for r in range(down):
            target = builder.gep(at(0, 1), [builder.mul(args[2], _I64(r))])
            for v in range(across):
                value = new[r * across + v]
                store(builder, builder.fadd(load(builder, target, v), value) if more else value, target, v)
        return context.get_dummy_value()

    return signature, code


@intrinsic
def pair_rows(typingctx, out, o, x, i, j, count):
    """out[o + k] = the word of x[i + k] and, in its upper half, x[j + k], for k < count, a multiple of LANES.

    out is a flat int32 array, x a flat int16 array of bf16.
    """
    n = types.int64
    signature = types.void(out, n, x, n, n, n)

    def code(context, builder, signature, args):
        target = builder.gep(address(context, builder, signature, args, 0), [args[1]])
        lower, upper = (builder.gep(address(context, builder, signature, args, 2), [args[a]]) for a in (3, 4))
        head, body, end = builder.block, builder.append_basic_block("words"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed(">", args[5], _I64(0)), body, end)
        builder.position_at_end(body)
        k = builder.phi(_I64)
        k.add_incoming(_I64(0), head)
        low, high = (builder.zext(load(builder, builder.gep(x, [k]), 0, _HALVES), _WORDS) for x in (lower, upper))
        word = builder.or_(low, builder.shl(high, ir.Constant(_WORDS, [16] * LANES)))
        store(builder, word, builder.gep(target, [k]), 0, _WORDS)
        following = builder.add(k, _I64(LANES))
        k.add_incoming(following, body)
        builder.cbranch(builder.icmp_signed("<", following, args[5]), body, end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, code
