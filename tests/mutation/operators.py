"""Which small changes of a source are possible.

What changes no number is left alone: annotations, docstrings, messages of errors, assertions,
`__repr__` and `__str__`, decorators, `__all__`, `__slots__` and blocks for type checkers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from itertools import pairwise

from tests.mutation.mutant import Mutant

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"), ast.In: ("in", "not in"), ast.NotIn: (r"not\s+in", "in"),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "+"), ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip
_OTHER_NAMES = {
    "min": "max", "max": "min", "all": "any", "any": "all", "amin": "amax", "amax": "amin",
    "minimum": "maximum", "maximum": "minimum", "floor": "ceil", "ceil": "floor",
}  # fmt: skip
_SILENT_FUNCTIONS = {"__repr__", "__str__"}
_SILENT_NAMES = {"__all__", "__slots__"}
_SILENT_KEYWORDS = {"stacklevel", "strict"}
"""Where a warning points to, and whether `zip` checks lengths, as an assertion does."""


def mutants(path: str, source: bytes) -> list[Mutant]:
    """Every mutant of a source, in the order of their places."""
    found = _Finder(path, source)
    found.visit(ast.parse(source))
    return sorted(set(found.mutants))


class _Finder(ast.NodeVisitor):
    """Notes the mutants of each node."""

    def __init__(self, path: str, source: bytes) -> None:
        self.mutants: list[Mutant] = []
        self._path, self._source = path, source
        lengths = [len(line) for line in source.splitlines(keepends=True)]
        self._lines = [0]
        for length in lengths:
            self._lines.append(self._lines[-1] + length)

    # what is left alone

    def _skip(self, node: ast.AST) -> None:
        """Look no further."""

    visit_Assert = visit_Raise = visit_JoinedStr = visit_Import = visit_ImportFrom = _skip  # noqa: N815

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in _SILENT_FUNCTIONS:
            return
        self._visit_all(node.args.defaults, node.args.kw_defaults, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_all(node.args.defaults, node.args.kw_defaults, [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._visit_all([node.value])

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        if names & _SILENT_NAMES:
            return
        if not any(isinstance(target, ast.Name | ast.Tuple) for target in node.targets):
            self._drop(node)
        self.generic_visit(node)

    # statements

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        self._decide(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._decide(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._replace(node.test, "False", "condition")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._replace(test, "True", "condition")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._drop(node)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._drop(node)
        self._swap(node.target, node.value, node.op, after="=")
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        if not all(isinstance(target, ast.Name) for target in node.targets):
            self._drop(node)

    # expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for (left, right), op in zip(pairwise(sides), node.ops, strict=True):
            pattern, other = _COMPARISONS[type(op)]
            self._between(left, right, rf"(?<![\w<>=!]){pattern}(?![\w<>=])", other, "comparison")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if not (_is_text(node.left) or _is_text(node.right)):
            self._swap(node.left, node.right, node.op)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        own, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in pairwise(node.values):
            self._between(left, right, rf"\b{own}\b", other, "logic")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        constant = isinstance(node.operand, ast.Constant)
        if isinstance(node.op, ast.Not | ast.Invert) or (
            isinstance(node.op, ast.USub) and not constant
        ):
            self._replace(node, f"({ast.unparse(node.operand)})", "negation")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, str(not node.value), "truth value")
        elif isinstance(node.value, int):
            self._replace(node, str(node.value + 1), "number")
        elif isinstance(node.value, float):
            self._replace(node, repr(2 * node.value or 1.0), "number")

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if isinstance(node.func, ast.Attribute):
            name = node.func.attr
        if name in _OTHER_NAMES:
            stop = self._offset(node.func.end_lineno, node.func.end_col_offset)
            self._note(stop - len(name), stop, _OTHER_NAMES[name], "function")
        types = name == "isinstance"
        self._visit_all([node.func], node.args[:1] if types else node.args)
        self._visit_all([k.value for k in node.keywords if k.arg not in _SILENT_KEYWORDS])

    # how they are noted

    def _visit_all(self, *groups: Iterable[ast.AST | None]) -> None:
        for node in (node for group in groups for node in group if node is not None):
            self.visit(node)

    def _decide(self, test: ast.expr) -> None:
        for value in ("True", "False"):
            self._replace(test, value, "condition")

    def _drop(self, node: ast.stmt) -> None:
        self._replace(node, "pass", "statement")

    def _swap(self, left: ast.expr, right: ast.expr, op: ast.operator, after: str = "") -> None:
        if type(op) in _ARITHMETIC:
            own, other = _ARITHMETIC[type(op)]
            pattern = re.escape(own + after)
            self._between(left, right, rf"(?<![*/]){pattern}(?![*/])", other + after, "arithmetic")

    def _between(
        self, left: ast.expr, right: ast.expr, pattern: str, text: str, operator: str
    ) -> None:
        """Replace an operator; comments that stand between are no place for it."""
        start = self._offset(left.end_lineno, left.end_col_offset)
        stop = self._offset(right.lineno, right.col_offset)
        gap = re.sub(rb"#[^\n]*", lambda found: b" " * len(found[0]), self._source[start:stop])
        found = re.search(pattern.encode(), gap)
        assert found is not None, f"{pattern} in {gap!r}"
        self._note(start + found.start(), start + found.end(), text, operator)

    def _replace(self, node: ast.expr | ast.stmt, text: str, operator: str) -> None:
        start = self._offset(node.lineno, node.col_offset)
        self._note(start, self._offset(node.end_lineno, node.end_col_offset), text, operator)

    def _note(self, start: int, stop: int, text: str, operator: str) -> None:
        self.mutants.append(Mutant(self._path, start, stop, text, operator))

    def _offset(self, line: int | None, column: int | None) -> int:
        return self._lines[(line or 1) - 1] + (column or 0)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
