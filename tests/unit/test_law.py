"""The law of the rooms, read from the source: who may import whom, where engines and Ray stand, how long things get."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("actors", "learners", "cluster", "serve")
FORBIDDEN = {
    "actors": {"learners", "cluster", "serve", "ray", "deepspeed", "bench", "tests"},
    "learners": {"cluster", "serve", "ray", "vllm", "bench", "tests"},
    "cluster": {"serve", "vllm", "deepspeed", "bench", "tests"},
    "serve": {"learners", "cluster", "vllm", "deepspeed", "bench", "tests"},
}
ONLY_IN = {
    "vllm": {"actors/engines/vllm/engine.py", "actors/engines/vllm/port.py"},
    # Sharded state is read where it lies: by the engine and its readers of shards.
    "deepspeed": {"learners/engines/deepspeed_engine.py", "learners/engines/zero_shards.py"},
}
RAY_CALLS = {"remote", "get", "put", "wait", "kill", "nodes"}
RAY_CALLERS = {
    f"cluster/workers/{name}.py" for name in ("broker", "calls", "learner", "lease", "nodes", "rollout", "scorer")
}
RAY_IMPORTERS = {
    *RAY_CALLERS,
    "cluster/life/connection.py",  # starts or joins a cluster, and calls no worker
    "cluster/workers/groups.py",  # reserves places, and calls no worker
    "cluster/service/jobs.py",  # Ray Jobs' client, which starts no worker
}
SERVING = "serve/"
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_LOOP = 300, 60, 90
LOOPS = {f"cluster/{name}.py" for name in ("ppo", "dpo", "online_dpo", "partial", "one_step_off", "asynchronous")}


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively; name the package"
            yield node.module, node.lineno


def breaches(path: Path, forbidden: set[str]) -> list[str]:
    return [
        f"{name_of(path)}:{line} imports {module}"
        for module, line in imports_of(path)
        if module.partition(".")[0] in forbidden
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_downward_only(room):
    found = [b for path in sources() if name_of(path).startswith(f"{room}/") for b in breaches(path, FORBIDDEN[room])]
    assert found == []


@pytest.mark.parametrize("module", ONLY_IN)
def test_each_engine_is_imported_in_its_own_file(module):
    found = {name_of(path) for path in sources() if breaches(path, {module})}
    assert found <= ONLY_IN[module]
    assert found, f"nobody imports {module}: this test has lost its subject"


def test_ray_is_imported_only_where_its_calls_stand():
    found = {name_of(path) for path in sources() if breaches(path, {"ray"})}
    assert {name for name in found if not name.startswith(SERVING)} <= RAY_IMPORTERS
    assert found >= RAY_CALLERS


def ray_calls(path: Path) -> list[str]:
    """Uses of `.remote(...)`, and of `ray.<verb>`, in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        of_ray = isinstance(node.value, ast.Name) and node.value.id == "ray" and node.attr in RAY_CALLS
        if node.attr == "remote" or of_ray:
            found.append(f"{name_of(path)}:{node.lineno} uses .{node.attr}")
    return found


def test_workers_are_called_in_one_file():
    outside = [c for p in sources() if name_of(p) not in RAY_CALLERS for c in ray_calls(p)]
    assert [call for call in outside if not call.startswith(SERVING)] == []
    assert all(ray_calls(ROOT / name) for name in RAY_CALLERS)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (
            "import cluster.config, cluster.cli, cluster.config.placement",
            {"torch", "ray", "vllm", "deepspeed", "transformers"},
        ),
        ("import cluster.inputs.online, cluster.config.resolve", {"torch", "ray", "vllm", "deepspeed"}),
        ("import cluster.inspect.examine, cluster.commands.check", {"torch", "ray", "vllm", "deepspeed"}),
        ("import actors.types, actors.engines.interface, actors.data, actors.rewards", {"torch", "ray", "vllm"}),
        ("import cluster.driver, cluster.life.keeper", {"torch", "vllm", "deepspeed", "transformers", "scipy"}),
        ("import cluster.roles", {"torch", "ray", "vllm", "deepspeed"}),
        ("import learners.methods.method, learners.methods.presets", {"torch", "ray", "vllm", "deepspeed"}),
    ],
)
def test_what_must_start_fast_pulls_in_no_engine(statement, absent):
    code = f"import sys; {statement}; print(*sorted(set({sorted(absent)!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def functions_of(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_files_and_functions_stay_short():
    found = []
    for path in sources():
        name, text = name_of(path), path.read_text()
        if (lines := text.count("\n")) > LONGEST_FILE:
            found.append(f"{name}: {lines} lines")
        bound = LONGEST_LOOP if name in LOOPS else LONGEST_FUNCTION
        for function in functions_of(ast.parse(text)):
            if (length := function.end_lineno - function.lineno + 1) > bound:
                found.append(f"{name}:{function.name}: {length} lines")
    assert found == []


def test_every_file_opens_with_what_it_is():
    found = []
    for path in sources():
        tree = ast.parse(path.read_text())
        doc = ast.get_docstring(tree)
        if doc is None:
            found.append(f"{name_of(path)}: no docstring")
        elif path.name != "__init__.py" and not 1 <= len(doc.splitlines()) <= 30:
            found.append(f"{name_of(path)}: a docstring of {len(doc.splitlines())} lines")
    assert found == []


def handlers(tree: ast.Module) -> Iterator[ast.ExceptHandler]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))


def test_no_error_is_swallowed_unseen():
    found = []
    for path in sources():
        for handler in handlers(ast.parse(path.read_text())):
            where = f"{name_of(path)}:{handler.lineno}"
            if handler.type is None:
                found.append(f"{where} bare except")
            if all(isinstance(statement, ast.Pass) for statement in handler.body):
                found.append(f"{where} except: pass")
    assert found == []


def test_nothing_is_left_for_later():
    marks = ("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error", "XX" + "X")
    found = [f"{name_of(path)}: {mark}" for path in sources() for mark in marks if mark in path.read_text()]
    assert found == []


class TestTheLawItselfSees:
    """The checks above, on source that breaks them."""

    def test_an_upward_import_inside_a_function(self, tmp_path, monkeypatch):
        path = tmp_path / "actors" / "bad.py"
        path.parent.mkdir()
        path.write_text("def f():\n    from cluster.workers import put\n    import ray.util\n")
        monkeypatch.setitem(globals(), "ROOT", tmp_path)
        assert breaches(path, FORBIDDEN["actors"]) == [
            "actors/bad.py:2 imports cluster.workers",
            "actors/bad.py:3 imports ray.util",
        ]

    def test_a_remote_call_and_a_ray_get(self, tmp_path, monkeypatch):
        path = tmp_path / "bad.py"
        path.write_text("import ray\nx = ray.get(worker.step.remote(1))\n")
        monkeypatch.setitem(globals(), "ROOT", tmp_path)
        assert sorted(ray_calls(path)) == ["bad.py:2 uses .get", "bad.py:2 uses .remote"]
