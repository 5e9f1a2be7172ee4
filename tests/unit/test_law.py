"""The law of the rooms, read from the source: who may import whom, where engines and Ray stand, how long things get."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.rooms import ANY_NUMBER, MAY_IMPORT, MOST_ENTRIES, OPEN_TO_ALL

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("actors", "learners", "cluster", "serve")
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
EXAMPLES = {"file.py", "path/file.py", "rewards.py"}
"""Files of users, in messages that show how to name one."""
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_LOOP = 300, 60, 90
LOOPS = {f"cluster/{name}.py" for name in ("ppo", "dpo", "online_dpo", "partial", "one_step_off", "asynchronous")}


def sources() -> list[Path]:
    return sorted(path for room in PACKAGES for path in (ROOT / room).rglob("*.py"))


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


@pytest.mark.parametrize("room", PACKAGES)
def test_imports_run_downward_only(room):
    found = [b for path in sources() if name_of(path).startswith(f"{room}/") for b in breaches(path, FORBIDDEN[room])]
    assert found == []


def room_of(path: Path) -> str:
    return name_of(path.parent)


def imported_rooms(path: Path) -> Iterator[tuple[str, str, int]]:
    """(room, file in it, line) of every import of a file of this house that lies in another room."""
    for file, line in imported_files(path):
        if room_of(file) != room_of(path):
            yield room_of(file), file.name, line


def imported_files(path: Path) -> Iterator[tuple[Path, int]]:
    """(file, line) of every import of a file of this house."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [(alias.name, alias.name) for alias in node.names]
        else:
            continue
        for candidates in names:
            files = (ROOT / name.replace(".", "/") for name in candidates)
            file = next((f for f in (leaf(each) for each in files) if f is not None), None)
            if file is not None:
                yield file, node.lineno


def leaf(path: Path) -> Path | None:
    """The source that a dotted name leads to: a file, or a package's facade."""
    file = path.with_suffix(".py")
    return file if file.is_file() else path / "__init__.py" if (path / "__init__.py").is_file() else None


def arrows() -> Iterator[tuple[str, str, str]]:
    """(from room, to room, where) of all imports between rooms, but for what is open to all and a facade's own
    rooms."""
    for path in sources():
        here = room_of(path)
        for there, file, line in imported_rooms(path):
            open_to_all = OPEN_TO_ALL.get(there) == file and here.startswith(there)
            own = path.name == "__init__.py" and there.startswith(f"{here}/")
            if not (open_to_all or own):
                yield here, there, f"{name_of(path)}:{line} imports {there}/{file}"


def test_every_room_has_a_row_and_every_row_a_room():
    assert {room_of(path) for path in sources()} == MAY_IMPORT.keys()


def test_rooms_import_what_their_row_says():
    assert [where for here, there, where in arrows() if there not in MAY_IMPORT[here]] == []


def test_a_row_names_earlier_rows_alone_and_no_arrow_that_nobody_uses():
    used = defaultdict(set)
    for here, there, _ in arrows():
        used[here].add(there)
    assert {room: allowed - used[room] for room, allowed in MAY_IMPORT.items() if allowed - used[room]} == {}
    order = list(MAY_IMPORT)
    assert [(a, b) for a, allowed in MAY_IMPORT.items() for b in allowed if order.index(b) >= order.index(a)] == []


def test_no_files_import_each_other_in_a_circle():
    """Those of types alone count too: a reader follows them as any other."""
    needs = {path: {file for file, _ in imported_files(path)} for path in sources() if path.name != "__init__.py"}
    left = dict(needs)
    while free := [path for path, wanted in left.items() if not wanted & left.keys()]:
        left = {path: wanted for path, wanted in left.items() if path not in free}
    assert sorted(name_of(path) for path in left) == []


def tracked() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def crowded(files: list[str]) -> dict[str, int]:
    """Folders with more entries than a reader takes in at a look, and how many they have. The checkout's top and a
    package's have files of their own and rooms, counted apart."""
    entries = defaultdict(set)
    for name in files:
        parts = name.split("/")
        for depth in range(len(parts)):
            folder, entry = "/".join(parts[:depth]), parts[depth]
            kind = "rooms" if folder in ("", *PACKAGES) and depth < len(parts) - 1 else "files"
            if entry != "__init__.py":
                entries[folder, kind].add(entry)
    free = tuple(f"{folder}/" for folder in ANY_NUMBER)
    return {
        folder: len(found)
        for (folder, _), found in entries.items()
        if len(found) > MOST_ENTRIES and not f"{folder}/".startswith(free)
    }


def test_no_folder_holds_more_than_a_look_takes_in():
    assert crowded(tracked()) == {}


def test_each_room_opens_with_what_it_holds_takes_gives_and_leaves_out():
    wanted = ("In:", "Out:", "Left out:")
    missing = {}
    for room in MAY_IMPORT:
        doc = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""
        words = " ".join(doc.split())
        missing |= {room: absent} if (absent := [w for w in wanted if w not in words]) else {}
    assert missing == {}


def test_files_that_a_docstring_or_a_comment_names_exist():
    named = re.compile(r"(?<![\w/.:*])((?:[a-z_]+/)*[a-z_]+\.py)\b(?!:)")
    found = []
    for path in sources():
        package = ROOT / name_of(path).split("/")[0]
        for line, text in enumerate(path.read_text().splitlines(), 1):
            for name in named.findall(text):
                places = (path.parent / name, package / name, ROOT / name)
                if name not in EXAMPLES and not any(place.is_file() for place in places):
                    found.append(f"{name_of(path)}:{line} names {name}")
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

    def test_an_import_between_rooms_by_module_name_and_facade(self, tmp_path, monkeypatch):
        for name in ("actors/__init__.py", "actors/a/__init__.py", "actors/a/x.py", "actors/b/__init__.py"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        path = tmp_path / "actors" / "b" / "y.py"
        path.write_text("from actors.a import x\nfrom actors.a.x import f\nimport actors.a.x\nfrom actors import a\n")
        monkeypatch.setitem(globals(), "ROOT", tmp_path)
        found = [(1, "x.py"), (2, "x.py"), (3, "x.py"), (4, "__init__.py")]
        assert sorted((line, file) for _, file, line in imported_rooms(path)) == found
        assert {room for room, _, _ in imported_rooms(path)} == {"actors/a"}

    def test_a_folder_that_is_too_full(self):
        many = [f"bench/b{i}.py" for i in range(15)]
        apart = [f"cluster/f{i}.py" for i in range(11)] + [f"cluster/r{i}/x.py" for i in range(13)]
        commands = [f"cluster/commands/c{i}.py" for i in range(20)]
        assert crowded(many + apart + commands) == {"bench": 15}

    def test_a_top_whose_files_and_folders_are_counted_apart(self):
        files, folders = [f"f{i}" for i in range(MOST_ENTRIES)], [f"d{i}/x" for i in range(MOST_ENTRIES)]
        assert crowded([*files, *folders]) == {}
        assert crowded([*files, "another"]) == {"": MOST_ENTRIES + 1}
