"""Faults planted in the processes of a run under test: Python imports this file first where its folder is on the path.

In: RAYLIGN_FAULTS, a JSON list of faults: {"id", "role", "at": "module:Class.method", "call": n, "do", "seconds"}; the
process's role stands in RAYLIGN_ROLE. At the n-th call of that method in a process of that role it kills, stops or
delays its own process, sets its clock, raises, or slows this call and all later ones down. Each fault strikes once in a
run: whoever creates its file in RAYLIGN_FAULTS_DIR, which then says when and in which process. Nothing of it is in
Raylign.
"""

from __future__ import annotations

import errno
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


class Clock:
    """time.time of a machine whose clock is set."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._real = time.time

    def __call__(self) -> float:
        return self._real() + self.ahead_s


clock = Clock()


def strike(fault: dict[str, Any]) -> bool:
    """Whether it is this fault's turn and it left the process alive."""
    path = os.path.join(os.environ["RAYLIGN_FAULTS_DIR"], f"{fault['id']}.json")
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        json.dump({"pid": os.getpid(), "time": clock()}, file)
        file.flush()
        os.fsync(file.fileno())
    if fault["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault["do"] == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault["do"] == "exit":
        os._exit(3)
    elif fault["do"] == "sleep":
        time.sleep(fault["seconds"])
    elif fault["do"] == "jump":
        clock.ahead_s += fault["seconds"]
    elif fault["do"] == "nospace":
        raise OSError(errno.ENOSPC, "No space left on device")
    elif fault["do"] == "full":
        raise sqlite3.OperationalError("database or disk is full")
    elif fault["do"] == "raise":
        raise RuntimeError(f"planted: {fault['id']}")
    return True


def planted(method: Callable[..., Any], fault: dict[str, Any]) -> Callable[..., Any]:
    calls, struck = 0, False

    @functools.wraps(method)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls, struck
        calls += 1
        now = calls == fault.get("call", 1) and strike(fault)
        struck |= now
        if now and fault["do"] == "nan":
            args = (args[0], args[1] * float("nan"), *args[2:])
        if struck and fault["do"] == "slow":
            time.sleep(fault["seconds"])
        return method(*args, **kwargs)

    return counted


class Planter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module as it is, then plants its faults."""

    def __init__(self, faults: dict[str, list[dict[str, Any]]]) -> None:
        self._faults = faults
        self._found: dict[str, Any] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name not in self._faults or name in self._found:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        self._found[name] = spec.loader
        spec.loader = self
        return spec

    def create_module(self, spec: Any) -> ModuleType | None:
        return self._found[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        module.__spec__.loader = module.__loader__ = self._found[name]
        self._found[name].exec_module(module)
        for fault in self._faults[name]:
            *owners, method = fault["at"].partition(":")[2].split(".")
            owner = functools.reduce(getattr, owners, module)
            setattr(owner, method, planted(getattr(owner, method), fault))


def install() -> None:
    role = os.environ.get("RAYLIGN_ROLE", "driver")
    faults: dict[str, list[dict[str, Any]]] = {}
    for fault in json.loads(os.environ.get("RAYLIGN_FAULTS", "[]")):
        if fault["role"] == role:
            faults.setdefault(fault["at"].partition(":")[0], []).append(fault)
    if faults:
        time.time = clock
        sys.meta_path.insert(0, Planter(faults))


install()
