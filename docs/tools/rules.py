"""Which config keys a check can name, read from the checks' source.

In: modules whose functions make `Problem(path, sentence)`. Out: one `Named` for each path that such a call can have,
with the sentence. A path is followed through names, loops over literals, generators and callers within the module; what
only a run can tell stands as `*`. Nothing is called. Left out: when a rule speaks (its source says), and what is wrong
with a pipeline as a whole.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = (
    "cluster.config.rules.general",
    "cluster.config.rules.lora",
    "cluster.config.rules.method",
    "cluster.config.rules.offline",
    "cluster.config.rules.recovery",
    "cluster.config.rules.reward",
    "cluster.config.rules.rollout",
    "cluster.config.rules.sampling",
    "cluster.config.rules.schedule",
    "cluster.config.transport",
    "cluster.inspect.examine",
    "cluster.inspect.data",
    "cluster.inspect.fit",
)
"""What says that something is wrong with the config of one run, before a worker starts."""
UNKNOWN = "*"
BLANK = "…"
"""In a sentence: a value of the config, or a part that only a run can tell."""

VALUE_GOT = re.compile(rf", got [^;:]*{BLANK}[^;:]*")
"""What a sentence says of the value it was given."""

Env = dict[str, list[Any]]
"""The values that each name of a function can have."""


@dataclass(frozen=True, slots=True)
class Named:
    """path: a dotted key, `*` for what only a run can tell. sentence: "" where all of it is made at run time."""

    path: str
    sentence: str
    file: str


def named_keys(modules: Iterable[str] = MODULES) -> list[Named]:
    """What every check can name, in the order of the source; the same twice said once."""
    found = (named for name in modules for named in Reader(importlib.import_module(name)).read())
    return list(dict.fromkeys(found))


class Reader:
    """One module's checks."""

    def __init__(self, module: ModuleType) -> None:
        tree = ast.parse(Path(str(module.__file__)).read_text())
        self._module = module
        self._file = module.__name__.replace(".", "/") + ".py"
        self._functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}

    def read(self) -> Iterator[Named]:
        for function in self._functions.values():
            for call, env in self._calls(function, "Problem"):
                sentence = self._sentence(call.args[1], function)
                for path in self._values(call.args[0], env):
                    yield Named(str(path), sentence, self._file)

    def _calls(
        self, function: ast.FunctionDef, name: str, callers: tuple[str, ...] = ()
    ) -> Iterator[tuple[ast.Call, Env]]:
        """Calls of `name` in the function, each with what the names are there."""
        for node, env in self._walk(function, callers):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield node, dict(env)

    def _walk(self, function: ast.FunctionDef, callers: tuple[str, ...] | None) -> Iterator[tuple[ast.AST, Env]]:
        """The function's nodes in the order of the source, with the names as they are there. callers: those that led
        here, so that a circle ends; None leaves its arguments unknown."""
        env = {} if callers is None else self._arguments(function, callers)
        nodes = (node for node in ast.walk(function) if isinstance(node, ast.expr | ast.stmt))
        for node in sorted(nodes, key=lambda n: (n.lineno, n.col_offset)):
            match node:
                case ast.Assign(targets=[target]):
                    _bind(env, target, self._values(node.value, env))
                case ast.AugAssign(op=ast.BitOr(), target=ast.Name(id=name)):
                    added = [v for v in self._values(node.value, env) if isinstance(v, Mapping)]
                    env[name] = [{**v, **more} for v in env[name] if isinstance(v, Mapping) for more in added] + env[
                        name
                    ]
                case ast.For():
                    _bind(env, node.target, self._elements(node.iter, env))
                case ast.GeneratorExp() | ast.ListComp():
                    self._enter(node, env)
            yield node, env

    def _enter(self, node: ast.GeneratorExp | ast.ListComp | ast.DictComp, env: Env) -> None:
        for part in node.generators:
            _bind(env, part.target, self._elements(part.iter, env))

    def _arguments(self, function: ast.FunctionDef, callers: tuple[str, ...]) -> Env:
        names = [argument.arg for argument in function.args.args]
        env: Env = {}
        for caller in self._functions.values():
            if caller.name == function.name or caller.name in callers or not _names(caller, function.name):
                continue
            for call, inside in self._calls(caller, function.name, (*callers, function.name)):
                for name, value in zip(names, call.args, strict=False):
                    known = env.setdefault(name, [])
                    known += [v for v in self._values(value, inside) if v not in known]
        return {name: env.get(name, [UNKNOWN]) for name in names}

    def _elements(self, node: ast.expr, env: Env) -> list[Any]:
        """What a loop over the expression takes, one after the other."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self._functions:
            return self._yielded(self._functions[node.func.id])
        found: list[Any] = []
        for value in self._values(node, env):
            found += list(value) if isinstance(value, tuple | Mapping) else [UNKNOWN]
        return found

    def _yielded(self, function: ast.FunctionDef) -> list[Any]:
        found: list[Any] = []
        for node, env in self._walk(function, None):
            if isinstance(node, ast.YieldFrom):
                found += self._elements(node.value, dict(env))
            elif isinstance(node, ast.Yield) and node.value is not None:
                found += self._values(node.value, env)
        return found

    def _values(self, node: ast.expr, env: Env) -> list[Any]:
        """Every value that the expression can have, as far as the source tells."""
        match node:
            case ast.Constant():
                return [node.value]
            case ast.Name():
                return env.get(node.id) or [vars(self._module).get(node.id, UNKNOWN)]
            case ast.IfExp():
                return [*self._values(node.body, env), *self._values(node.orelse, env)]
            case ast.JoinedStr():
                parts = [self._values(part, env) for part in node.values]
                return ["".join(map(str, chosen)) for chosen in itertools.product(*parts)]
            case ast.FormattedValue():
                return [value if isinstance(value, str | int) else UNKNOWN for value in self._values(node.value, env)]
            case ast.Tuple() | ast.List():
                return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*self._items(node, env))]
            case ast.GeneratorExp() | ast.ListComp():
                inside = dict(env)
                self._enter(node, inside)
                return [tuple(self._values(node.elt, inside))]
            case ast.DictComp():
                inside = dict(env)
                self._enter(node, inside)
                return [{key: UNKNOWN for key in self._values(node.key, inside)}]
            case ast.Call(func=ast.Attribute(attr="items", value=owner)):
                known = [value for value in self._values(owner, env) if isinstance(value, Mapping)]
                return [tuple(value.items()) for value in known] or [((UNKNOWN, UNKNOWN),)]
        return [UNKNOWN]

    def _items(self, node: ast.Tuple | ast.List, env: Env) -> list[list[tuple[Any, ...]]]:
        """For each item of a literal its possible values, each as what it adds: one, or those that a star unpacks."""
        found: list[list[tuple[Any, ...]]] = []
        for item in node.elts:
            if isinstance(item, ast.Starred):
                unpacked = self._values(item.value, env)
                found.append([value if isinstance(value, tuple) else (UNKNOWN,) for value in unpacked])
            else:
                found.append([(value,) for value in self._values(item, env)])
        return found

    def _sentence(self, node: ast.expr, function: ast.FunctionDef) -> str:
        """The text with its values blank; a name stands for the text that it was given last before."""
        match node:
            case ast.Constant():
                return str(node.value)
            case ast.JoinedStr():
                parts = [str(p.value) if isinstance(p, ast.Constant) else BLANK for p in node.values]
                return VALUE_GOT.sub("", "".join(parts))
            case ast.Name():
                given = [
                    assigned
                    for assigned in ast.walk(function)
                    if isinstance(assigned, ast.Assign)
                    and any(isinstance(target, ast.Name) and target.id == node.id for target in assigned.targets)
                    and assigned.lineno < node.lineno
                ]
                last = max(given, key=lambda assigned: assigned.lineno, default=None)
                return "" if last is None else self._sentence(last.value, function)
        return ""


def _names(function: ast.FunctionDef, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(function))


def _bind(env: Env, target: ast.expr, values: list[Any]) -> None:
    """A name, or names that take a value apart, as an assignment or a loop does."""
    if isinstance(target, ast.Name):
        env[target.id] = [value for place, value in enumerate(values) if value not in values[:place]]
    elif isinstance(target, ast.Tuple):
        for place, part in enumerate(target.elts):
            _bind(env, part, [v[place] if isinstance(v, tuple) and place < len(v) else UNKNOWN for v in values])
