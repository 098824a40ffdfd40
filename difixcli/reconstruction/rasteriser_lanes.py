"""Eight float32 values side by side, as a numba type.

numba's automatic vectoriser gives up on the rasteriser's inner loop (it cannot prove that the scratch arrays do not
overlap, and sums must be reassociated), so the kernels say what they mean: a `Lanes` value is an LLVM ``<8 x float>``,
`+ - * /` and comparisons work lane by lane, and a plain float32 beside a `Lanes` is spread over all lanes. LLVM maps
it onto whatever the machine has (one AVX register, two SSE or NEON registers).

Everything here may only be called from numba-compiled code.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.typeconv import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

from difixcli.compiled import FAST

COUNT = 8

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_FLOATS = ir.VectorType(_FLOAT, COUNT)
_INTS = ir.VectorType(_INT, COUNT)
_BITS = ir.VectorType(ir.IntType(1), COUNT)
_FLAGS = tuple(sorted(FAST))


class LanesType(types.Type):
    """Eight float32 values."""

    def __init__(self) -> None:
        super().__init__(name="Lanes8")

    def can_convert_from(self, typingctx: Any, other: Any) -> Conversion | None:
        return Conversion.safe if other == types.float32 else None


class MaskType(types.Type):
    """Eight truth values, the result of comparing `Lanes`."""

    def __init__(self) -> None:
        super().__init__(name="Mask8")


LANES = LanesType()
MASK = MaskType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _FLOATS)


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _BITS)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_FLOATS, [value] * COUNT)


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(_INT, 0))
    return builder.shuffle_vector(one, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, [0] * COUNT))


@lower_cast(types.Float, LanesType)
def _cast_float(context: Any, builder: ir.IRBuilder, fromty: Any, toty: Any, value: ir.Value) -> ir.Value:
    return _spread(builder, value)


def _binary(symbol: Any, instruction: str, result: types.Type) -> None:
    """Teach numba `symbol` on two `Lanes`, or on one and a float32."""

    @infer_global(symbol)
    class Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and LANES in args and all(arg in (LANES, types.float32) for arg in args):
                return signature(result, LANES, LANES)
            return None

    @lower_builtin(symbol, LANES, LANES)
    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        if result is MASK:
            return builder.fcmp_ordered(instruction, *args)
        return getattr(builder, instruction)(*args, flags=_FLAGS)


_binary(operator.add, "fadd", LANES)
_binary(operator.sub, "fsub", LANES)
_binary(operator.mul, "fmul", LANES)
_binary(operator.truediv, "fdiv", LANES)
_binary(operator.lt, "<", MASK)
_binary(operator.le, "<=", MASK)
_binary(operator.gt, ">", MASK)
_binary(operator.ge, ">=", MASK)


@infer_global(operator.and_)
class _AndTemplate(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        return signature(MASK, MASK, MASK) if tuple(args) == (MASK, MASK) else None


@lower_builtin(operator.and_, MASK, MASK)
def _lower_and(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
    return builder.and_(*args)


def _pointer(context: Any, builder: ir.IRBuilder, arrayty: Any, array: ir.Value, index: ir.Value) -> ir.Value:
    view = context.make_array(arrayty)(context, builder, array)
    return builder.bitcast(builder.gep(view.data, [index]), _FLOATS.as_pointer())


def _is_row(array: Any) -> bool:
    return isinstance(array, types.Array) and array.dtype == types.float32 and array.ndim == 1 and array.layout == "C"


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """``array[index : index + 8]`` of a contiguous float32 array, unchecked."""
    if not _is_row(array):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        loaded = builder.load(_pointer(context, builder, sig.args[0], *args))
        loaded.align = 4
        return loaded

    return LANES(array, types.intp), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index : index + 8] = value``, unchecked."""
    if not _is_row(array):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1])).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, LANES), codegen


@intrinsic
def spread(typingctx: Any, value: Any) -> Any:
    """The same float32 in every lane."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return _spread(builder, args[0])

    return LANES(types.float32), codegen


@intrinsic
def select(typingctx: Any, mask: Any, yes: Any, no: Any) -> Any:
    """Lane by lane: `yes` where `mask`, else `no`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.select(*args)

    return LANES(MASK, LANES, LANES), codegen


@intrinsic
def maximum(typingctx: Any, one: Any, other: Any) -> Any:
    """Lane by lane: the larger value."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.select(builder.fcmp_ordered(">", *args, flags=_FLAGS), *args)

    return LANES(LANES, LANES), codegen


@intrinsic
def clip(typingctx: Any, value: Any, low: Any, high: Any) -> Any:
    """Lane by lane: `value` between the float32 numbers `low` and `high`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        value, low, high = args[0], _spread(builder, args[1]), _spread(builder, args[2])
        value = builder.select(builder.fcmp_ordered("<", value, high, flags=_FLAGS), value, high)
        return builder.select(builder.fcmp_ordered(">", value, low, flags=_FLAGS), value, low)

    return LANES(LANES, types.float32, types.float32), codegen


@intrinsic
def magnitude(typingctx: Any, value: Any) -> Any:
    """Lane by lane absolute value."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        bits = builder.and_(builder.bitcast(args[0], _INTS), ir.Constant(_INTS, [0x7FFFFFFF] * COUNT))
        return builder.bitcast(bits, _FLOATS)

    return LANES(LANES), codegen


@intrinsic
def total(typingctx: Any, value: Any) -> Any:
    """Sum of the eight lanes, always in the same (pairwise) order."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        value, width = args[0], COUNT
        while width > 1:
            width //= 2
            low = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(_INT, width), list(range(width))))
            high = builder.shuffle_vector(
                value, value, ir.Constant(ir.VectorType(_INT, width), list(range(width, 2 * width)))
            )
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(_INT, 0))

    return types.float32(LANES), codegen


@intrinsic
def totals(typingctx: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """The sums of the lanes of eight values, as the eight lanes of one."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        # Halve the number of values three times: each step adds the two halves of every group of lanes, and puts the
        # results of two values beside each other.
        values, group = list(args), COUNT
        while len(values) > 1:
            half = group // 2
            low, high = [], []
            for start in range(0, COUNT, group):
                for source in (0, COUNT):
                    low += [source + start + i for i in range(half)]
                    high += [source + start + half + i for i in range(half)]
            low_mask, high_mask = ir.Constant(_INTS, low), ir.Constant(_INTS, high)
            values = [
                builder.fadd(
                    builder.shuffle_vector(one, other, low_mask), builder.shuffle_vector(one, other, high_mask)
                )
                for one, other in zip(values[: len(values) // 2], values[len(values) // 2 :], strict=True)
            ]
            group = half
        return values[0]

    return LANES(LANES, LANES, LANES, LANES, LANES, LANES, LANES, LANES), codegen


@intrinsic
def any_true(typingctx: Any, mask: Any) -> Any:
    """Whether one lane of a mask is true."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        bits = builder.bitcast(args[0], ir.IntType(COUNT))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(COUNT), 0))

    return types.boolean(MASK), codegen


# 2**-f for f in [0, 1], minimax in relative error; coefficients from the highest power down.
_HALVING = (
    -0.0009387883474119008,
    0.00918861199170351,
    -0.055279724299907684,
    0.24017219245433807,
    -0.6931422352790833,
    0.9999999403953552,
)


@intrinsic
def halving(typingctx: Any, exponent: Any) -> Any:
    """``2 ** -exponent`` for exponents in [0, 126]; relative error below 3e-7."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        whole = builder.fptosi(args[0], _INTS)
        part = builder.fsub(args[0], builder.sitofp(whole, _FLOATS))
        value: ir.Value = _constant(_HALVING[0])
        for coefficient in _HALVING[1:]:
            value = builder.fadd(builder.fmul(value, part, flags=_FLAGS), _constant(coefficient), flags=_FLAGS)
        # A float's exponent field is the power of two plus 127, in bits 23 to 30.
        field = builder.sub(ir.Constant(_INTS, [127] * COUNT), whole)
        power = builder.bitcast(builder.shl(field, ir.Constant(_INTS, [23] * COUNT)), _FLOATS)
        return builder.fmul(value, power)

    return LANES(LANES), codegen
