"""Totals as expressions: ``0.8*acc + 0.2*format + 1.2*(tool if acc > 0.5 else 0)``.

Python's grammar, our own interpreter: numbers, names of terms, + - * /, comparisons, and / or / not (1 or 0), ``x if c else
y``, min, max, clip(x, low, high) and abs. Nothing else is understood, and nothing is executed.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from itertools import pairwise

_MAX_CHARS, _MAX_DEPTH, _LARGEST = 2000, 40, 1e300
_BINARY: Mapping[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}
_COMPARE: Mapping[type[ast.AST], Callable[[float, float], bool]] = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
}
_FUNCTIONS: Mapping[str, tuple[int, int, Callable[..., float]]] = {
    "min": (2, 20, min),
    "max": (2, 20, max),
    "abs": (1, 1, abs),
    "clip": (3, 3, lambda x, low, high: min(max(x, low), high)),
}


class ExpressionError(ValueError):
    """An expression that is not understood, or has no value. The message names the place."""


def check(text: str, names: Collection[str]) -> None:
    """Raises `ExpressionError` unless ``text`` is an expression over these names."""
    called = {id(node.func) for node in ast.walk(_parsed(text)) if isinstance(node, ast.Call)}
    for node in ast.walk(_parsed(text)):
        if isinstance(node, ast.Name) and id(node) not in called and node.id not in names:
            raise _error(text, node, f"{node.id!r} is no term; the terms are {', '.join(sorted(names))}")


def evaluate(text: str, values: Mapping[str, float]) -> float:
    """The value of an expression. Raises `ExpressionError` for a division by zero and for what is not finite."""
    value = _value(_parsed(text), text, values)
    if not math.isfinite(value):
        raise ExpressionError(f"{text!r} is {value}")
    return value


def _error(text: str, node: ast.expr, problem: str) -> ExpressionError:
    piece = ast.get_source_segment(text, node) or ""
    return ExpressionError(f"{text!r}, column {node.col_offset + 1} ({piece[:40]!r}): {problem}")


@lru_cache(maxsize=256)
def _parsed(text: str) -> ast.expr:
    if len(text) > _MAX_CHARS:
        raise ExpressionError(f"an expression has at most {_MAX_CHARS} characters, this one {len(text)}")
    try:
        body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        column = f", column {error.offset}" if isinstance(error, SyntaxError) else ""
        raise ExpressionError(f"{text!r}{column}: not an expression ({error.args[0]})") from error
    _check(body, text, 0)
    return body


def _check(node: ast.expr, text: str, depth: int) -> None:
    """Refuses what the interpreter does not know, before there is anything to compute."""
    if depth > _MAX_DEPTH:
        raise _error(text, node, f"nested more than {_MAX_DEPTH} deep")
    inner: list[ast.expr]
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and abs(value) <= _LARGEST:
            inner = []
        case ast.Name():
            inner = []
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _BINARY:
            inner = [left, right]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            inner = [operand]
        case ast.BoolOp(values=values):
            inner = values
        case ast.Compare(left=left, ops=operators, comparators=others) if all(type(one) in _COMPARE for one in operators):
            inner = [left, *others]
        case ast.IfExp(test=test, body=body, orelse=orelse):
            inner = [test, body, orelse]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            least, most, _ = _FUNCTIONS[name]
            if not least <= len(arguments) <= most:
                raise _error(text, node, f"{name} takes {least if least == most else f'{least} to {most}'} values")
            inner = arguments
        case _:
            raise _error(text, node, "not understood; there are numbers, terms, + - * /, comparisons, and, or, not, "
                         f"'x if c else y', {', '.join(_FUNCTIONS)}")  # fmt: skip
    for one in inner:
        _check(one, text, depth + 1)


def _value(node: ast.expr, text: str, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=value):
            return float(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            if name not in values:
                raise _error(text, node, f"{name!r} is no term; the terms are {', '.join(sorted(values))}")
            return values[name]
        case ast.BinOp(left=left, op=operator, right=right):
            a, b = _value(left, text, values), _value(right, text, values)
            if isinstance(operator, ast.Div) and b == 0:
                raise _error(text, node, "a division by zero")
            return _BINARY[type(operator)](a, b)
        case ast.UnaryOp(op=operator, operand=operand):
            value = _value(operand, text, values)
            return float(value == 0) if isinstance(operator, ast.Not) else -value if isinstance(operator, ast.USub) else value
        case ast.BoolOp(op=operator, values=parts):
            truths = (_value(part, text, values) != 0 for part in parts)
            return float(all(truths) if isinstance(operator, ast.And) else any(truths))
        case ast.Compare(left=left, ops=operators, comparators=others):
            sides = [_value(side, text, values) for side in (left, *others)]
            return float(all(_COMPARE[type(one)](a, b) for one, (a, b) in zip(operators, pairwise(sides), strict=True)))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test, text, values) != 0 else orelse, text, values)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return float(_FUNCTIONS[name][2](*(_value(argument, text, values) for argument in arguments)))
    raise _error(text, node, "not understood")
