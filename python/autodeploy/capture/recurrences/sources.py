"""Functions of the model's files that loop, and their code with the loops under watch.

1. A *token loop* is `for i in range(...)` whose end is not a number in the source. It becomes

       bounds = (...)
       if WATCH.is_open(bounds): a, b = WATCH.loop(key, locals())
       else: for i in range(*bounds): ...

   where a, b are the names that the loop writes. The loop is also compiled as a function of the names that it reads.
2. A function *reaches* a loop when it has one (of any kind), or mentions a function or class of its file that does.
   Its code becomes `return WATCH.call(key, locals())`.

Both replace the function's code object in place, so that whoever holds the function (a partial, a decorator, a bound
method) sees it; line numbers stay those of the file.
"""

from __future__ import annotations
import __future__

import ast
import copy
import dataclasses
import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

WATCH = "__autodeploy_watch__"
_BOUNDS = "__autodeploy_bounds__"
_ENDS = (ast.Return, ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal, ast.Delete, ast.FunctionDef)


@dataclasses.dataclass(frozen=True)
class Loop:
    """A token loop: the names that it reads and writes, and a function from a dict of the former to all its names."""

    where: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    attributes: frozenset[tuple[str, str]]  # (name, attribute) pairs that it reads
    run: Callable[[dict[str, Any]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Watched:
    """A function under watch. `body` is what it does when nothing was recognised: its own code, loops under watch."""

    key: str
    function: types.FunctionType
    where: str
    original: types.FunctionType
    body: types.FunctionType
    code: types.CodeType
    loops: dict[str, Loop]
    attributes: frozenset[tuple[str, str]]


def watched_functions(files: Iterable[str]) -> Iterator[Watched]:
    """Every function of these files that reaches a loop, ready to be put under watch."""
    modules = {getattr(m, "__file__", None): m for m in list(sys.modules.values())}
    for file in sorted(files):
        module = modules.get(file)
        if module is None:
            continue
        tree = _parse(file)
        reaching = _reaching(tree)
        for function in _functions(module, file):
            node = _definitions(file).get((function.__code__.co_firstlineno, function.__name__))
            if node is not None and id(node) in reaching:
                made = _watch(function, node, file)
                if made is not None:
                    yield made


@functools.lru_cache(maxsize=64)
def _parse(file: str) -> ast.Module:
    with open(file, encoding="utf-8") as f:
        return ast.parse(f.read())


@functools.lru_cache(maxsize=64)
def _definitions(file: str) -> dict[tuple[int, str], ast.FunctionDef]:
    """Functions by the line of their first decorator or `def`, and name."""
    found = (n for n in ast.walk(_parse(file)) if isinstance(n, ast.FunctionDef))
    return {(min([n.lineno, *(d.lineno for d in n.decorator_list)]), n.name): n for n in found}


def _functions(module: types.ModuleType, file: str) -> Iterator[types.FunctionType]:
    """Functions that are written in the file, behind decorators too."""
    seen: set[int] = set()
    owners = [module, *(x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__)]
    for owner in owners:
        for value in list(vars(owner).values()):
            found: Any = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            while found is not None and id(found) not in seen:
                seen.add(id(found))
                if isinstance(found, types.FunctionType) and found.__code__.co_filename == file:
                    yield found
                found = getattr(found, "__wrapped__", None)


def _reaching(tree: ast.Module) -> set[int]:
    """Ids of function definitions that reach a loop."""
    classes = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    inner = {id(f): c for c in classes.values() for f in c.body if isinstance(f, ast.FunctionDef)}
    mentions = {id(f): _mentions(f) for f in functions}
    reaching = {id(f) for f in functions if any(_is_loop(n) for n in ast.walk(f))}
    while True:
        names = {f.name if id(f) not in inner else inner[id(f)].name for f in functions if id(f) in reaching}
        names |= {f.name for f in functions if id(f) in reaching}
        reached = {c.name for c in classes.values() if c.name in names}
        more = {
            id(f) for f in functions if mentions[id(f)] & names or (id(f) in inner and inner[id(f)].name in reached)
        }
        if more <= reaching:
            return reaching
        reaching |= more


def _mentions(node: ast.AST) -> set[str]:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return (names | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}) - {"forward", "__init__"}


def _is_loop(node: ast.AST) -> bool:
    if isinstance(node, ast.While):
        return True
    return isinstance(node, ast.For) and not any(
        isinstance(n, ast.Name) and n.id in ("self", "enumerate", "zip") for n in ast.walk(node.iter)
    )


def _watch(function: types.FunctionType, node: ast.FunctionDef, file: str) -> Watched | None:
    code = function.__code__
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    if any(n.startswith("__") and not n.endswith("__") for n in names):
        return None  # mangled inside its class
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return None
    where = f"{os.path.basename(file)}:{node.lineno} {function.__qualname__}"
    rewriter = _LoopRewriter(file, where, function)
    body = rewriter.rewrite(node)
    call = copy.deepcopy(node)
    used = [ast.Expr(ast.Name(name, ast.Load())) for name in code.co_freevars]
    key = f"{file}:{node.lineno}"
    call.body = [
        *([ast.If(ast.Constant(False), used, [])] if used else []),
        ast.Return(_watch_call("call", ast.Constant(key), _locals())),
    ]
    for statement in call.body:
        _locate(statement, node)
    try:
        loops_code = _compiled(body, file, code)
        call_code = _compiled(call, file, code)
    except SyntaxError:
        return None
    if loops_code.co_freevars != code.co_freevars or call_code.co_freevars != code.co_freevars:
        return None

    def alone(c: types.CodeType) -> types.FunctionType:
        made = types.FunctionType(
            c, function.__globals__, function.__name__, function.__defaults__, function.__closure__
        )
        made.__kwdefaults__ = function.__kwdefaults__
        return made

    return Watched(
        key, function, where, alone(code), alone(loops_code), call_code, rewriter.loops, frozenset(_attributes(node))
    )


def _watch_call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Attribute(ast.Name(WATCH, ast.Load()), name, ast.Load()), list(args), [])


def _locals() -> ast.expr:
    return ast.Call(ast.Name("locals", ast.Load()), [], [])


def _compiled(node: ast.FunctionDef, file: str, code: types.CodeType) -> types.CodeType:
    """The code object of a function definition, its free variables bound by a function around it."""
    node.decorator_list = []
    node.returns = None
    outer = ast.FunctionDef("outer", _parameters(code.co_freevars), [node], [])
    flags = code.co_flags & __future__.annotations.compiler_flag
    module = ast.fix_missing_locations(ast.Module([ast.copy_location(outer, node)], []))
    found = compile(module, file, "exec", flags=flags, dont_inherit=True)
    for name in ("outer", node.name):
        found = next(c for c in found.co_consts if isinstance(c, types.CodeType) and c.co_name == name)
    return found.replace(co_qualname=code.co_qualname)


def _parameters(names: Iterable[str]) -> ast.arguments:
    return ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, [])


def _attributes(node: ast.AST) -> Iterator[tuple[str, str]]:
    for n in ast.walk(node):
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load) and isinstance(n.value, ast.Name):
            yield n.value.id, n.attr


class _LoopRewriter(ast.NodeTransformer):
    def __init__(self, file: str, where: str, function: types.FunctionType):
        self.file, self.where, self.function = file, where, function
        self.loops: dict[str, Loop] = {}

    def rewrite(self, node: ast.FunctionDef) -> ast.FunctionDef:
        made = copy.deepcopy(node)
        self.root = made
        visited = (self.visit(statement) for statement in made.body)
        made.body = [x for v in visited for x in (v if isinstance(v, list) else [v])]
        return made

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node  # a function inside has locals of its own

    visit_Lambda = visit_ClassDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_For(self, node: ast.For) -> Any:
        if not _is_token_loop(node):
            return self.generic_visit(node)
        where = f"{os.path.basename(self.file)}:{node.lineno} {self.function.__qualname__}"
        key = f"{self.file}:{node.lineno}:{node.col_offset}"
        loop = _outlined(node, where, self.file, self.function)
        self.loops[key] = loop
        bounds = ast.Tuple(node.iter.args, ast.Load())  # type: ignore[attr-defined]
        keep = ast.Assign([ast.Name(_BOUNDS, ast.Store())], bounds)
        node.iter = _over_bounds()
        targets: list[ast.expr] = [ast.Name(name, ast.Store()) for name in loop.writes]
        found = ast.Assign([ast.Tuple(targets, ast.Store())], _watch_call("loop", ast.Constant(key), _locals()))
        test = _watch_call("is_open", ast.Name(_BOUNDS, ast.Load()))
        made = [keep, ast.If(test, [found], [node])]
        for statement in made:
            _locate(statement, node)
        return made


def _locate(made: ast.AST, like: ast.stmt) -> None:
    """Places new nodes at the line of another; those that came from the file keep theirs."""
    for n in ast.walk(made):
        if isinstance(n, (ast.expr, ast.stmt)) and not hasattr(n, "lineno"):
            n.lineno, n.col_offset = like.lineno, like.col_offset
            n.end_lineno, n.end_col_offset = like.lineno, like.end_col_offset


def _over_bounds() -> ast.Call:
    return ast.Call(ast.Name("range", ast.Load()), [ast.Starred(ast.Name(_BOUNDS, ast.Load()), ast.Load())], [])


def _is_token_loop(node: ast.For) -> bool:
    call = node.iter
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"):
        return False
    if call.keywords or node.orelse or any(isinstance(a, ast.Starred) for a in call.args):
        return False
    if all(isinstance(a, ast.Constant) for a in call.args):
        return False
    inside = [n for statement in node.body for n in ast.walk(statement)]
    return not any(isinstance(n, _ENDS) for n in inside) and not any(
        isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) for n in inside
    )


def _outlined(node: ast.For, where: str, file: str, function: types.FunctionType) -> Loop:
    """The loop as a function of the names that it reads."""
    loop = copy.deepcopy(node)
    loop.iter = _over_bounds()
    inside = list(ast.walk(loop))
    known = {*function.__code__.co_varnames, *function.__code__.co_freevars, *function.__code__.co_cellvars, _BOUNDS}
    loaded = {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    reads = tuple(sorted((loaded | {_root(n) for n in inside if isinstance(n, ast.AugAssign)}) & known))
    stored = {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    changed = {_root(n) for n in inside if isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store)}
    for n in inside:
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute):
            method = n.func.attr
            if method in ("append", "extend", "insert") or (method.endswith("_") and not method.startswith("_")):
                changed.add(_root(n.func))
    writes = tuple(sorted((stored | changed) & known))
    name = "__autodeploy_loop__"
    made = ast.FunctionDef(name, _parameters(reads), [loop, ast.Return(_locals())], [])
    module = ast.Module([made], [])
    _locate(module, node)
    code = compile(ast.fix_missing_locations(module), file, "exec", dont_inherit=True)
    body = next(c for c in code.co_consts if isinstance(c, types.CodeType))

    def run(values: dict[str, Any]) -> dict[str, Any]:
        # Names that are first written inside the loop have no value before it.
        missing = {name: None for name in reads if name not in values}
        return types.FunctionType(body, function.__globals__)(**missing, **{n: values[n] for n in reads if n in values})

    return Loop(where, reads, writes, frozenset(_attributes(loop)), run)


def _root(node: Any) -> str:
    """The variable at the bottom of `a.b[c].d`, or an empty text."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call, ast.AugAssign, ast.Starred)):
        node = (
            node.func if isinstance(node, ast.Call) else node.target if isinstance(node, ast.AugAssign) else node.value
        )
    return node.id if isinstance(node, ast.Name) else ""
