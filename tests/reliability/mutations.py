"""The small faults that `mutate.py` puts into a module, one at a time.

Each is one node of the syntax tree: an operator, a comparison, a boundary, a condition, a number, True or False, a
returned value, a function with an opposite, or a statement that is left out. Annotations, strings, the arguments of
exceptions and `strict=True` stay as they are: `tests/reliability/bad_input.py` holds the messages, and `strict` guards
against errors that are not there.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NEGATED = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
BOUNDARIES = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
OPPOSITES = {
    **{"min": "max", "minimum": "maximum", "any": "all", "zeros_like": "ones_like", "logical_and": "logical_or"},
    **{"max": "min", "maximum": "minimum", "all": "any", "ones_like": "zeros_like", "logical_or": "logical_and"},
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        module: The module's path from the root of the repository.
        function: Qualified name of the function or class it is in, "" at the top.
        kind: What was changed.
        before: The node's source.
        after: What stands in its place.
        number: Counts the mutants that agree in all of these, from 0.
        lines: First and last line of the statement.
        node: The node's position in `ast.walk`.
    """

    module: str
    function: str
    kind: str
    before: str
    after: str
    number: int
    lines: tuple[int, int]
    node: int

    @property
    def key(self) -> str:
        """Names the mutant; stays the same when other lines of the module change."""
        again = f" ({self.number + 1})" if self.number else ""
        return f"{self.module}::{self.function or 'module'}: {self.before} -> {self.after}{again}"

    def rank(self, seed: int) -> str:
        """The mutant's place in the random order of that seed."""
        return hashlib.sha256(f"{seed} {self.key}".encode()).hexdigest()


def _copy(node: Any, **changes: Any) -> Any:
    changed = copy.copy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _changed_number(value: float) -> float:
    return value + 1 if isinstance(value, int) else (1.5 * value or 1.0)


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in the place of a node, with the kind of the change."""
    match node:
        case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATORS and not _is_text(left):
            if not _is_text(right):
                yield "operator", _copy(node, op=OPERATORS[type(op)]())
        case ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield "operator", _copy(node, op=OPERATORS[type(op)]())
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield "operator", operand
        case ast.BoolOp(op=op):
            yield "operator", _copy(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.Compare(ops=found):
            for i, op in enumerate(found):
                for kind, table in ("comparison", NEGATED), ("boundary", BOUNDARIES):
                    if type(op) in table:
                        yield kind, _copy(node, ops=[*found[:i], table[type(op)](), *found[i + 1 :]])
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            # A comparison's own mutants say the same.
            if not isinstance(test, ast.Compare | ast.UnaryOp):
                yield "condition", _copy(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.comprehension(ifs=ifs) if ifs:
            for i, test in enumerate(ifs):
                yield "condition", _copy(node, ifs=[*ifs[:i], ast.UnaryOp(ast.Not(), test), *ifs[i + 1 :]])
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "constant", ast.Constant(_changed_number(value))
        case ast.Return(value=value) if value is not None and not (isinstance(value, ast.Constant) and not value.value):
            yield "return", ast.Return(ast.Constant(None))
        case ast.Name(id=name) if name in OPPOSITES:
            yield "function", _copy(node, id=OPPOSITES[name])
        case ast.Attribute(attr=name) if name in OPPOSITES:
            yield "function", _copy(node, attr=OPPOSITES[name])
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield "statement", ast.Pass()
        case ast.Break():
            yield "statement", ast.Continue()
        case ast.Continue():
            yield "statement", ast.Break()


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The children in which faults are looked for."""
    if isinstance(node, ast.JoinedStr | ast.Raise) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "type_params"):
            yield from (
                child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)
            )


def _sites(node: ast.AST, function: str, lines: tuple[int, int]) -> Iterator[tuple[ast.AST, str, tuple[int, int]]]:
    """The nodes below this one with the function that they are in and the lines of their statement."""
    for child in _children(node):
        inner, own = function, lines
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            inner = f"{function}.{child.name}".lstrip(".")
        if isinstance(child, ast.stmt):
            body = getattr(child, "body", None)
            own = (child.lineno, max(body[0].lineno - 1, child.lineno) if body else child.end_lineno)
        yield child, inner, own
        yield from _sites(child, inner, own)


def mutants(module: str, source: str) -> list[Mutant]:
    """All faults of a module.

    Args:
        module: Its path from the root of the repository.
        source: Its text.
    """
    tree = ast.parse(source)
    positions = {id(node): position for position, node in enumerate(ast.walk(tree))}
    found, seen = [], Counter()
    for node, function, lines in _sites(tree, "", (1, 1)):
        for kind, new in replacements(node):
            texts = _header(node), _header(new)
            key = (function, kind, *texts)
            found.append(Mutant(module, function, kind, *texts, seen[key], lines, positions[id(node)]))
            seen[key] += 1
    return found


def _header(node: ast.AST) -> str:
    """The source of a node on one line; of a statement with a body, its first line."""
    if isinstance(node, ast.comprehension):
        return ast.unparse(ast.ListComp(ast.Constant(...), [node]))
    text = ast.unparse(ast.fix_missing_locations(copy.deepcopy(node)))
    return " ".join(
        (text.splitlines()[0] if getattr(node, "body", None) and isinstance(node, ast.stmt) else text).split()
    )


def apply(mutant: Mutant, source: str) -> ast.Module:
    """The module's syntax tree with the fault in it."""
    tree = ast.parse(source)
    target = list(ast.walk(tree))[mutant.node]

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            if node is not target:
                return self.generic_visit(node)
            return next(
                ast.copy_location(new, node) if hasattr(node, "lineno") else new
                for kind, new in replacements(node)
                if (kind, _header(new)) == (mutant.kind, mutant.after)
            )

    return ast.fix_missing_locations(Replace().visit(tree))
