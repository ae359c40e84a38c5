"""Jinja with a meter: chat templates come with models, and a model may come from anyone.

jinja2's sandbox keeps a template away from Python. It does not keep it from taking all
the time and memory there is: `'a' * 10**10`, nested loops, a string that doubles itself.
A thread can't be stopped from outside and a process per prompt is heavy (and unknown on
phones), so the work itself is metered, at the few places where a template can make work:

- loops, filters, calls, operators, `~`, lists and captured blocks are rewritten or
  intercepted so that each pays for the size of what it takes and of what it makes,
  before it makes it; what has no meter is not on the list of allowed things;
- between two payments only straight-line code on bounded values can run, so a deadline
  that is looked at with every payment bounds the time as well.
"""

from __future__ import annotations

import json
import time
import types
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from functools import wraps
from itertools import islice
from typing import Any, NoReturn, cast

from jinja2 import Undefined, nodes, pass_context
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_VALUE = 1_000_000  # characters of one string, items and characters inside one list
_BUDGET = 3_000_000  # units of work: an item or a character that is moved
_CALL = 10  # units
_SECONDS = 2.0  # of this thread's processor time: a machine that sleeps costs nothing
_MAX_INT = 2**63


class LimitExceeded(Exception):
    """A template did what it may not, or took more than it may."""


class Meter:
    """What is left of the work that one rendering may do."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._left = _BUDGET
        self._deadline = time.thread_time() + _SECONDS

    def spend(self, units: int) -> None:
        self._left -= 1 + units
        if self._left < 0 or time.thread_time() > self._deadline:
            raise LimitExceeded("it does too much work")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALLOWED_NODES = _names(
    "Template Output TemplateData Name Const For If Assign AssignBlock NSRef Macro With ExprStmt "
    "Call Keyword Pair Getattr Getitem Slice Filter Test Compare Operand And Or Not Neg Pos Add "
    "Sub Mul Div FloorDiv Mod Concat CondExpr List Tuple Dict Break Continue"
)
_BORROWED_FILTERS = _names(
    "d default first int items last list map reject rejectattr reverse select selectattr"
)
_PLAIN_TESTS = _names(
    "boolean defined divisibleby even false float integer iterable mapping none number odd "
    "sequence string true undefined"
)
_COMPARING_TESTS = _names("== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le in")
_ATTRIBUTES: Mapping[type, frozenset[str]] = {
    str: _names(
        "strip lstrip rstrip split rsplit splitlines startswith endswith upper lower capitalize "
        "title find removeprefix removesuffix replace"
    ),
    dict: _names("get items keys values"),
    LoopContext: _names(
        "index index0 revindex revindex0 first last length depth previtem nextitem"
    ),
}
_SCALARS = (str, int, float, bool, type(None), Undefined)
_LAZY = (range, Iterator, KeysView, ValuesView, ItemsView)


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs templates under a `Meter`. For one rendering at a time."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=_printable,
            # Folding constants would do work at compile time, where nothing is metered.
            optimized=False,
            cache_size=0,
        )
        self.meter = Meter()
        self.filters = self._metered_filters()
        self.tests = {name: TESTS[name] for name in _PLAIN_TESTS} | {
            name: self._weighing(cast(Any, TESTS[name])) for name in _COMPARING_TESTS
        }
        self.globals = {
            "range": safe_range,
            "namespace": _namespace,
            "raise_exception": _raise_exception,
        }

    def compile_template(self, source: str) -> Any:
        """Return a jinja2 Template. Raises jinja2's errors and LimitExceeded."""
        tree = _Rewriter().visit(self.parse(source))
        tree.set_environment(self)
        return self.from_string(tree)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return attr in _ATTRIBUTES.get(type(obj), ())

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.meter.spend(_CALL + sum(map(_size, args)))
        if isinstance(function, (Macro, Undefined)) or function in self.globals.values():
            return super().call(context, function, *args, **kwargs)
        if not isinstance(function, types.BuiltinMethodType):
            raise LimitExceeded(f"it calls {type(function).__name__}")
        owner, name = function.__self__, function.__name__
        if name not in _ATTRIBUTES.get(type(owner), ()):
            raise LimitExceeded(f"it calls {name}()")
        if name == "replace":
            return self._replace(str(owner), *args, **kwargs)
        self.meter.spend(_size(owner))
        return function(*args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.meter.spend(0)
        if _is_number(left) and _is_number(right) and operator != "**":
            return _bounded_number(self.binop_table[operator](left, right))
        if operator == "+" and type(left) is type(right) and isinstance(left, (str, list)):
            self._pay_for(len(left) + len(right))
        elif operator == "*" and isinstance(left, (str, list)) and isinstance(right, int):
            self._pay_for(len(left) * max(0, right))
        else:
            kinds = f"{type(left).__name__} {operator} {type(right).__name__}"
            raise LimitExceeded(f"it computes {kinds}")
        result = self.binop_table[operator](left, right)
        return result if isinstance(result, str) else self._weighed(result)

    def concat(self, parts: Iterable[str]) -> str:
        """Join what a macro or a `{% set %}` block has captured."""
        pieces = list(parts)
        self._pay_for(sum(map(len, pieces)))
        return "".join(pieces)

    def _pay_for(self, size: int) -> None:
        if size > MAX_VALUE:
            raise LimitExceeded("it makes a value that is too large")
        self.meter.spend(size)

    def _weighed(self, value: Any) -> Any:
        """Pay for everything inside `value`. A list holding one list twice pays for two, so
        what is small in memory and endless to print or compare can't be built."""
        weight = 0
        stack = [value]
        while stack:
            item = stack.pop()
            weight += 1 + (len(item) if isinstance(item, str) else 0)
            if weight > MAX_VALUE:
                raise LimitExceeded("it makes a value that is too large")
            if isinstance(item, dict):
                stack.extend(item.keys())
                stack.extend(item.values())
            elif isinstance(item, (list, tuple)):
                stack.extend(item)
        self.meter.spend(weight)
        return value

    def _items(self, value: Any) -> Any:
        """What a loop or a filter walks over: lazy things become lists, so that they pay."""
        if isinstance(value, _LAZY):
            value = list(islice(value, MAX_RANGE + 1))
        self.meter.spend(_size(value))
        return value

    def _length(self, value: Any) -> int:
        self.meter.spend(0)
        return len(value)

    def _joined(self, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
        parts = []
        for item in self._items(value):
            parts.append(_text(item if attribute is None else self.getitem(item, attribute)))
        self._pay_for(sum(map(len, parts)) + len(_text(d)) * len(parts))
        return _text(d).join(parts)

    def _replace(self, text: str, old: str, new: str, count: int = -1) -> str:
        found = text.count(old)
        self._pay_for(len(text) + max(0, len(new) - len(old)) * found)
        return text.replace(old, new, count)

    def _tojson(
        self, value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any
    ) -> str:
        self._weighed(value)
        if indent is not None and not 0 <= indent <= 8:
            raise LimitExceeded("it indents by more than 8")
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)
        self._pay_for(len(text))
        return text

    def _metered_filters(self) -> dict[str, Callable[..., Any]]:
        own: dict[str, Callable[..., Any]] = {
            "capitalize": self._of_text(str.capitalize),
            "count": self._length,
            "join": self._joined,
            "length": self._length,
            "lower": self._of_text(str.lower),
            "replace": self._replace,
            "safe": self._of_text(str),
            "string": self._of_text(str),
            "tojson": self._tojson,
            "trim": self._of_text(str.strip),
            "upper": self._of_text(str.upper),
            # What `_Rewriter` puts in; a name with brackets is none of a template's.
            "(items)": self._items,
            "(join)": self._joined,
            "(weigh)": self._weighed,
        }
        return {name: self._paying(FILTERS[name]) for name in _BORROWED_FILTERS} | own

    def _paying(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def paying(*args: Any, **kwargs: Any) -> Any:
            result = function(*map(self._items, args), **kwargs)
            return self._weighed(result) if isinstance(result, list) else result

        return paying

    def _weighing(self, test: Callable[..., Any]) -> Callable[..., Any]:
        def weighing(*args: Any) -> Any:
            return test(*map(self._weighed, args))

        return weighing

    def _of_text(self, function: Callable[..., str]) -> Callable[..., str]:
        def of_text(value: Any, *args: Any) -> str:
            text = _text(value)
            self.meter.spend(len(text))
            return function(text, *args)

        return of_text


class _Rewriter(NodeTransformer):
    """Refuses what is not allowed, and leads what makes work past the meter."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        name = type(node).__name__
        if name not in _ALLOWED_NODES:
            raise LimitExceeded(f"it uses {name}, which chat templates here may not")
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _through("(items)", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("(join)", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _through("(items)", node.node)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for side in node.ops:
            side.expr = _through("(weigh)", side.expr)
        node.expr = _through("(weigh)", node.expr)
        return node

    def visit_List(self, node: nodes.Expr) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("(weigh)", node)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        # A tuple that is assigned to (`for a, b in ...`) is not a value.
        return _through("(weigh)", node) if node.ctx == "load" else node


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


@pass_context
def _printable(context: Context, value: Any) -> Any:
    environment = context.environment
    assert isinstance(environment, MeteredEnvironment)
    environment.meter.spend(_size(value))
    return value if isinstance(value, Undefined) else _text(value)


def _text(value: Any) -> str:
    # The text of a list or a dict would be Python's, and could be endless.
    if not isinstance(value, _SCALARS):
        raise LimitExceeded(f"it prints a {type(value).__name__}")
    return str(value)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict)) else 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _bounded_number(value: Any) -> Any:
    if isinstance(value, int) and abs(value) >= _MAX_INT:
        raise LimitExceeded("it computes a number that is too large")
    return value


def _namespace(*args: Any, **kwargs: Any) -> Namespace:
    values = dict(*args, **kwargs)
    if any(not isinstance(name, str) or name.startswith("_") for name in values):
        raise LimitExceeded("it names a private attribute")
    return Namespace(values)


def _raise_exception(message: Any = "") -> NoReturn:
    raise LimitExceeded(f"it says: {str(message)[:200]}")
