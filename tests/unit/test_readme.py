"""The README keeps its word: its links lead to files, and its page on adding a method, run as it stands, adds one."""

import re
import subprocess
import sys
from pathlib import Path

from cluster.config import load_config
from cluster.config.sections.algorithm import METHODS

ROOT = Path(__file__).resolve().parents[2]

TRIAL = """
import torch
from torch import Tensor
from learners.methods import presets
from learners.methods.presets import Preset, PolicyLossSettings
from learners.methods.row_advantages import ROW_ADVANTAGES, Rows, row_advantage

{function}

presets.PRESETS |= {{
{line}
}}
presets.ADVANTAGES = (*presets.ADVANTAGES, "median")

from cluster.config.resolve import resolve_method
from tests.fixtures.configs import GRPO, config

found = resolve_method(config(GRPO.replace("name: grpo", "name: median_po")))
assert found.preset.advantage == "median", found

import numpy as np
from learners.experience import build_experience
from learners.methods.method import StepInputs
from tests.fixtures.columns import batch_of, sample, scores_of

batch = batch_of(*(sample(0, i, [5], [6, 7]) for i in range(3)))
made = build_experience(StepInputs(0, batch, scores_of(1.0, 4.0, 6.0)), found)
assert made.advantages_BT[:, 0].tolist() == [-3.0, 0.0, 2.0], made.advantages_BT
print("learned")
"""


def test_the_readme_s_method_is_a_function_a_line_and_a_name_in_a_recipe():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    function, line = (part.split("\n", 1)[1] for part in re.split(r"(?m)^(?=# learners/)", code) if part)
    # In a process of its own: the registries of this one stay as they are.
    trial = TRIAL.format(function=function, line=line)
    done = subprocess.run([sys.executable, "-c", trial], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "learned" in done.stdout, done.stderr[-2000:]


def test_every_method_of_the_readme_has_a_recipe_that_loads_with_it():
    """A link, or a link with an override; all methods stand in the tables."""
    found = {}
    for line in (ROOT / "README.md").read_text().splitlines():
        recipe = re.search(r"\[\w+\]\((deploy/recipes/[\w/]+\.yaml)\)(?: with `(algorithm=\w+)`)?[^|]*\|$", line)
        names = re.findall(r"`(\w+)`", line.split("|")[1]) if line.startswith("| `") and recipe else []
        for name in names:
            override = [f"algorithm={name}"] if recipe[2] else []
            found[name] = load_config(ROOT / recipe[1], override).algorithm.name
    assert {name: found.get(name) for name in METHODS} == {name: name for name in METHODS}


def test_every_link_of_the_readme_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 30
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
