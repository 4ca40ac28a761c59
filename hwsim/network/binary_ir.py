"""A product of bits as vector instructions, built like that of `matrix_ir.py`: AND, population count, add.

The counts of a tile, some rows of bits times some vectors of outputs, stay in registers while the words go by. With
AVX-512's own population count a lane is a count. Without it the bytes of a lane are counted apart, `RUN` words at most,
which is what a table of 16 numbers (AVX2, NEON) gives for the least instructions; then they are added up.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from hwsim.network.vector_ir import LANES, WIDE, address, has, load, store

COUNTS = WIDE and has("avx512vpopcntdq")
"""Whether the processor counts the bits of a lane itself."""
RUN = 2**31 - 1 if COUNTS else 31
"""Words that one segment may have: 31 times 8 is what a byte holds."""

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_LANES = ir.VectorType(_I32, LANES)
_SUMS = _LANES if COUNTS else ir.VectorType(_I8, 4 * LANES)


def _splat(builder, number):
    nothing = ir.Constant(_LANES, ir.Undefined)
    everywhere = ir.Constant(_LANES, [0] * LANES)
    return builder.shuffle_vector(builder.insert_element(nothing, number, _I32(0)), nothing, everywhere)


def _lanes(builder, sums):
    """Sums of bits, a number a lane."""
    if COUNTS:
        return sums
    word = builder.bitcast(sums, _LANES)
    even = ir.Constant(_LANES, [0x00FF00FF] * LANES)
    word = builder.add(builder.and_(word, even), builder.and_(builder.lshr(word, _LANES([8] * LANES)), even))
    low = builder.and_(word, ir.Constant(_LANES, [0xFFFF] * LANES))
    return builder.add(low, builder.lshr(word, _LANES([16] * LANES)))


@intrinsic(prefer_literal=True)
def count_tile(typingctx, out, o, o_row, x, i, i_row, less, m, w, j, scale, minus, k, segments, doubled, rows, vectors):
    """out[o + r o_row + q] = scale[k + q] (2^doubled count[r, q] - less[m + r] - minus[k + q])       q < vectors LANES

    with count made by all segments (xo, wo, words, shift) in order, from 0:

        count[r, q] <- 2^shift count[r, q] + sum over d < words: pop(x[i + r i_row + xo + d] & w[j + (wo + d) n + q])

    r < rows, n = vectors LANES; all arrays are flat: out and scale float32, x and w uint32, less and minus int32,
    segments int64; rows and vectors are constants; there is a segment, and 1 <= words <= `RUN` in each.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(vectors, types.IntegerLiteral)):
        return None
    down, across = rows.literal_value, vectors.literal_value
    n = types.int64
    signature = types.void(out, n, n, x, n, n, less, n, w, n, scale, minus, n, segments, n, rows, vectors)

    def code(context, builder, signature, args):
        def at(array: int, first: int):
            return builder.gep(address(context, builder, signature, args, array), [args[first]])

        ones = builder.module.declare_intrinsic(f"llvm.ctpop.v{_SUMS.count}i{_SUMS.element.width}", (), _popcount())
        of = [builder.gep(at(3, 4), [builder.mul(args[5], _I64(r))]) for r in range(down)]
        beside, listed = at(8, 9), address(context, builder, signature, args, 13)
        table = context.make_array(signature.args[13])(context, builder, args[13])
        many = builder.udiv(builder.extract_value(table.shape, 0), _I64(4))
        head, segment, words, end = builder.block, *map(builder.append_basic_block, ("segment", "words", "done"))
        builder.branch(segment)

        builder.position_at_end(segment)
        s = builder.phi(_I64)
        s.add_incoming(_I64(0), head)
        counts = [builder.phi(_LANES) for _ in range(down * across)]
        row = builder.gep(listed, [builder.mul(s, _I64(4))])
        xo, wo, length, shift = (builder.load(builder.gep(row, [_I64(f)])) for f in range(4))
        by = _splat(builder, builder.trunc(shift, _I32))
        before = [builder.shl(c, by) for c in counts]
        first = before if COUNTS else [ir.Constant(_SUMS, [0] * _SUMS.count)] * len(counts)
        here = [builder.gep(p, [xo]) for p in of]
        weights = builder.gep(beside, [builder.mul(wo, _I64(across * LANES))])
        builder.branch(words)

        builder.position_at_end(words)
        d = builder.phi(_I64)
        d.add_incoming(_I64(0), segment)
        sums = [builder.phi(_SUMS) for _ in counts]
        place = builder.gep(weights, [builder.mul(d, _I64(across * LANES))])
        right = [builder.bitcast(load(builder, place, v, _LANES), _SUMS) for v in range(across)]
        new = []
        for r in range(down):
            left = builder.bitcast(_splat(builder, builder.load(builder.gep(here[r], [d]))), _SUMS)
            for v in range(across):
                both = builder.call(ones, [builder.and_(left, right[v])])
                new.append(builder.add(sums[r * across + v], both))
        following = builder.add(d, _I64(1))
        for phi, start, value in zip([d, *sums], [None, *first], [following, *new], strict=True):
            if start is not None:
                phi.add_incoming(start, segment)
            phi.add_incoming(value, words)
        after = builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("<", following, length), words, after)

        builder.position_at_end(after)
        total = new if COUNTS else [builder.add(b, _lanes(builder, v)) for b, v in zip(before, new, strict=True)]
        next_s = builder.add(s, _I64(1))
        s.add_incoming(next_s, after)
        for phi, value in zip(counts, total, strict=True):
            phi.add_incoming(ir.Constant(_LANES, [0] * LANES), head)
            phi.add_incoming(value, after)
        builder.cbranch(builder.icmp_signed("<", next_s, many), segment, end)

        builder.position_at_end(end)
        doubling = _splat(builder, builder.trunc(args[14], _I32))
        factors, fewer = at(10, 12), at(11, 12)
        for r in range(down):
            target = builder.gep(at(0, 1), [builder.mul(args[2], _I64(r))])
            taken = _splat(builder, builder.load(builder.gep(at(6, 7), [_I64(r)])))
            for v in range(across):
                whole = builder.sub(builder.shl(total[r * across + v], doubling), taken)
                whole = builder.sub(whole, load(builder, fewer, v, _LANES))
                factor = load(builder, factors, v)
                store(builder, builder.fmul(builder.sitofp(whole, factor.type), factor), target, v)
        return context.get_dummy_value()

    return signature, code


def _popcount():
    return ir.FunctionType(_SUMS, [_SUMS])


@intrinsic
def population(typingctx, bits):
    """How many bits of a uint32 are set."""

    def code(context, builder, signature, args):
        ones = builder.module.declare_intrinsic("llvm.ctpop", [_I32], ir.FunctionType(_I32, [_I32]))
        return builder.call(ones, [args[0]])

    return types.int32(types.uint32), code


@intrinsic
def equal_words(typingctx, x, i, times):
    """Where `times` x[i], …, `times` x[i + 31] are 1, 2, 3, 4, and where none of these and not 0: a uint32 each.

    x is a flat float32 array.
    """
    words = types.UniTuple(types.uint32, 5)

    def code(context, builder, signature, args):
        kind = ir.VectorType(ir.FloatType(), 32)
        first = builder.gep(address(context, builder, signature, args, 0), [args[1]])
        values = builder.load(builder.bitcast(first, kind.as_pointer()), align=4)
        factor = builder.insert_element(ir.Constant(kind, ir.Undefined), args[2], _I32(0))
        factor = builder.shuffle_vector(factor, factor, ir.Constant(ir.VectorType(_I32, 32), [0] * 32))
        values = builder.fmul(values, factor)

        def equal(number: float):
            return builder.bitcast(builder.fcmp_ordered("==", values, ir.Constant(kind, [number] * 32)), _I32)

        known = [equal(n) for n in range(5)]
        any_of = known[0]
        for word in known[1:]:
            any_of = builder.or_(any_of, word)
        return context.make_tuple(builder, signature.return_type, [*known[1:], builder.not_(any_of)])

    return words(x, types.int64, types.float32), code
