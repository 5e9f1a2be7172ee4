"""What stands under deploy/ fits the project and the schemas of the programs that read it. Nothing is started but bash.

KubeRay's schemas are beside some checkouts (see `SCHEMAS`); where they are not, only those cases are skipped.
"""

from __future__ import annotations

import ast
import dataclasses
import gzip
import importlib.util
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.config.loading.load import load_config
from serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
MANIFESTS = ("raycluster", "rayjob", "rayservice")
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.cuda")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _pin(package: str) -> str:
    """The exact version that pyproject pins, extras aside."""
    pins = [re.fullmatch(rf"{package}(?:\[[^]]*\])?==(.+)", line) for line in PROJECT["project"]["dependencies"]]
    return next(pin.group(1) for pin in pins if pin)


def _manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "kuberay" / f"{name}.yaml").read_text())


def _cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster spec wherever the kind keeps it."""
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def _pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = _cluster(manifest)
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def _texts() -> dict[str, str]:
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and "recipes" not in path.parts]
    return {str(path.relative_to(ROOT)): path.read_text() for path in files}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's schemas are not beside this checkout")
def test_manifest_is_valid_by_kuberays_schema(name: str) -> None:
    manifest = _manifest(name)
    schema = json.loads(gzip.decompress((SCHEMAS / f"{manifest['kind']}.v1.schema.json.gz").read_bytes()))
    jsonschema.Draft7Validator(_closed(schema)).validate(manifest)


def _closed(schema: Any) -> Any:
    """The same schema refusing unknown keys, as the API server warns of them: a typing error must not pass."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    free = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "type" in schema and not free:
        closed["additionalProperties"] = False
    return closed


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_runs_the_pinned_ray_without_root_and_with_the_token(name: str) -> None:
    manifest = _manifest(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    assert _cluster(manifest)["rayVersion"] == _pin("ray")
    assert _cluster(manifest)["authOptions"] == {"mode": "token"}
    for pod in _pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_use_the_projects_image_and_mount_the_claimed_folder(name: str) -> None:
    claim = yaml.safe_load((DEPLOY / "kuberay" / "storage.yaml").read_text())["metadata"]["name"]
    for pod in _pods(_manifest(name)):
        volumes = [volume for volume in pod["volumes"] if "emptyDir" not in volume]
        claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in volumes}
        for container in pod["containers"]:
            assert container["image"] == f"raylign:{PROJECT['project']['version']}-cuda"
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert claims[mounts["/runs"]] == claim


def test_service_builds_our_application_with_arguments_it_knows() -> None:
    config = yaml.safe_load(_manifest("rayservice")["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    module, function = application["import_path"].split(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    known = {f.name for f in dataclasses.fields(ServeSettings)} | {"policy", "step", "api_key_env"}
    assert set(application["args"]) <= known


def test_services_key_is_in_every_pod_and_its_engine_fits_a_worker() -> None:
    manifest = _manifest("rayservice")
    arguments = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"][0]["args"]
    for pod in _pods(manifest):
        assert arguments["api_key_env"] in {variable["name"] for variable in pod["containers"][0]["env"]}
    limits = _pods(manifest)[1]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) >= arguments["gpus"]


def test_commands_in_deploy_are_verbs_of_the_command_line() -> None:
    verbs = set(PROJECT["project"]["entry-points"]["raylign.commands"])
    found = (re.findall(r"(?<![\w./:-])raylign ([a-z]+)\b", text) for text in _texts().values())
    used = {verb for verbs_of_file in found for verb in verbs_of_file}
    assert used >= {"train", "submit"}
    assert used <= verbs, f"not in pyproject's raylign.commands: {sorted(used - verbs)}"


def test_recipes_named_in_deploy_exist_and_load() -> None:
    named = {path for text in _texts().values() for path in re.findall(r"deploy/recipes/\w+\.yaml", text)}
    assert named
    for path in sorted(named):
        load_config(ROOT / path)


def test_training_attaches_to_the_cluster_and_a_retry_resumes() -> None:
    spec = _manifest("rayjob")["spec"]
    words = shlex.split(spec["entrypoint"].replace("$(", "'").replace(")", "'"))
    assert words[:2] == ["raylign", "train"]
    assert "ray.address=auto" in words
    run_dir = words[words.index("--run-dir") + 1]
    assert run_dir.startswith("/runs/")
    assert words[-1] == f"test -f {run_dir}/config.yaml && echo --resume"
    assert spec["backoffLimit"] > 0


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfile_copies_what_exists_and_every_package(name: str) -> None:
    lines = _instructions(name)
    copies = [words for words in lines if words[0] == "COPY" and not words[1].startswith("--from")]
    copied = [source for words in copies for source in _sources(words)]
    missing = [source for source in copied if not (ROOT / source).exists()]
    assert not missing
    include = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {pattern.rstrip("*").replace(".", "/") for pattern in include}
    assert packages | {"pyproject.toml", "constraints", "LICENSE"} <= set(copied)
    install = next(i for i, words in enumerate(lines) if words[:3] == ["RUN", "pip", "install"] and "-c" in words)
    before = {source for words in lines[:install] if words[0] == "COPY" for source in _sources(words)}
    assert packages <= before, "recipes too: what pip installs is what `raylign init` finds"


@pytest.mark.parametrize(
    ("name", "extra", "torch"), [("Dockerfile.cpu", "cpu", "+cpu"), ("Dockerfile.cuda", "cuda", "")]
)
def test_image_installs_the_pinned_torch_alone_and_first_then_the_extra(name: str, extra: str, torch: str) -> None:
    runs = [" ".join(words[1:]) for words in _instructions(name) if words[0] == "RUN"]
    installs = [run for run in runs if "pip install" in run]
    assert len(installs) == 2
    assert f'"torch=={_pin("torch")}{torch}"' in installs[0]
    assert "TORCH_INDEX" in installs[0]
    assert installs[1] == f"pip install -c constraints/{extra}.txt '.[{extra}]'"
    assert extra in PROJECT["project"]["optional-dependencies"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_runs_as_a_user_who_can_write_runs(name: str) -> None:
    lines = _instructions(name)
    assert [words[1] for words in lines if words[0] == "USER"][-1] == "1000"
    assert any("--owner raylign /runs" in " ".join(words) for words in lines)


def _instructions(name: str) -> list[list[str]]:
    """Each instruction's words; comments dropped and continued lines joined."""
    lines = [line for line in (DEPLOY / "docker" / name).read_text().splitlines() if not line.startswith("#")]
    return [line.split() for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def _sources(copy: list[str]) -> list[str]:
    return [word for word in copy[1:-1] if not word.startswith("--")]


def test_launcher_file_is_valid_by_rays_own_schema() -> None:
    (package,) = importlib.util.find_spec("ray").submodule_search_locations
    schema = json.loads(Path(package, "autoscaler", "ray-schema.json").read_text())
    config = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
    jsonschema.validate(config, schema)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    assert config["docker"]["image"] == f"raylign:{PROJECT['project']['version']}-cuda"


def _run_slurm(folder: Path, run_dir: Path, *, health: str = "exit 0", train: str = "exit 0") -> tuple[int, list[str]]:
    """The script with stand-ins for Slurm's and Ray's commands: its exit code, and the calls in order."""
    calls = folder / "calls"
    calls.touch()
    stand_ins = {
        "scontrol": "printf 'n1\\nn2\\nn3\\n'",
        "hostname": "echo 10.0.0.1 fe80::1",
        "srun": 'while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && export NODE=${1#*=}; shift; done; exec "$@"',
        "ray": f'echo "$NODE ray $*" >> {calls}; if [ "$1" = start ]; then exec tail -f /dev/null; fi; {health}',
        # The training takes longer than the workers' start: it waits until all three nodes have called.
        "raylign": f'until [ "$(grep -c " start " {calls})" = 3 ]; do sleep 0.01; done\n'
        f'echo "$NODE raylign $*" >> {calls}; {train}',
    }
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_GPUS_ON_NODE": "2",
    }
    done = subprocess.run(
        ["bash", DEPLOY / "slurm" / "train.sbatch", "deploy/recipes/ppo_multinode.yaml", run_dir, "steps=2"],
        env={**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}", "RAYLIGN_RETRY_S": "0"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode, calls.read_text().splitlines()


def test_slurm_script_parses() -> None:
    subprocess.run(["bash", "-n", DEPLOY / "slurm" / "train.sbatch"], check=True)


def test_slurm_job_starts_a_head_then_workers_then_trains_on_the_head_and_leaves_nothing(tmp_path: Path) -> None:
    code, calls = _run_slurm(tmp_path, tmp_path / "run")
    assert code == 0
    starts = sorted(call for call in calls if " start " in call)
    assert [call.split(" --num-cpus")[0] for call in starts] == [
        "n1 ray start --head --block --node-ip-address=10.0.0.1 --port=20041",
        "n2 ray start --block --address=10.0.0.1:20041",
        "n3 ray start --block --address=10.0.0.1:20041",
    ]
    train = next(call for call in calls if " raylign " in call)
    assert train == (
        "n1 raylign train deploy/recipes/ppo_multinode.yaml steps=2 ray.address=10.0.0.1:20041 "
        f"--run-dir {tmp_path / 'run'}"
    )
    # The stand-ins for `ray start` never end by themselves: the script's own clean-up did it, or run() timed out.


@pytest.mark.parametrize("settings", ["config.yaml", "pipeline.yaml"])
def test_requeued_slurm_job_resumes_and_the_trainings_exit_code_is_the_jobs(tmp_path: Path, settings: str) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / settings).write_text("steps: 2\n")
    code, calls = _run_slurm(tmp_path, run_dir, train="exit 3")
    assert code == 3
    assert any(call.endswith(f"--run-dir {run_dir} --resume") for call in calls)


def test_slurm_job_without_a_head_fails_before_it_trains(tmp_path: Path) -> None:
    code, calls = _run_slurm(tmp_path, tmp_path / "run", health="exit 1")
    assert code == 1
    assert not any(" raylign " in call for call in calls)
