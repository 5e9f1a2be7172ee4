"""Keys that runs of before saved and that are gone: reading such a run passes them over.

In: a saved config as plain data. Out: the same without them. They acted on nothing, so nothing is lost; in a recipe
they are unknown keys, for whoever writes one expects something of it. Left out: recipes (load.py), what a resume may
change (cluster/config/rules/resuming.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ANY = "*"
RETIRED = (
    ("learner", "zero", "nvme_path"),
    ("critic", "zero", "nvme_path"),
    ("reward", "models", ANY, "batch_size"),
    ("reward", "safety", "models", ANY, "batch_size"),
)


def without_retired(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a run's saved config that has none of them."""
    kept = dict(tree)
    for keys in RETIRED:
        kept = _without(kept, keys)
    return kept


def _without(tree: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    key, rest = keys[0], keys[1:]
    if not rest:
        return {name: value for name, value in tree.items() if name != key}
    return {
        name: _without(value, rest) if key in (ANY, name) and isinstance(value, Mapping) else value
        for name, value in tree.items()
    }
