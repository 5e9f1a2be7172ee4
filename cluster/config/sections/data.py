"""The `data` section: where rows come from and how they are read. Data only.

In: nothing. Out: pydantic models. Left out: reading rows (actors/data), what a method has no use for
(cluster/config/rules/general.py, cluster/config/rules/method.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from cluster.config.sections.section import Count, Section


class ReasoningGym(Section):
    """A task of `reasoning_gym` by name, with its own parameters."""

    task: str
    """The task's name, such as chain_sum."""
    params: dict[str, Any] = {}
    """The task's own parameters."""
    size: Count = 10_000
    """Entries that are generated to train on."""
    seed: int = 0
    """Of the entries; held-out ones come from another."""
    answer_format: str | list[str] | None = None
    """How demonstrations and pairs say an answer, with {answer} and the names of an entry's metadata ({expression} of
    chain_sum); several take turns. Default: demonstrations bare, pairs "The answer is {answer}."."""
    rejected_format: str | None = None
    """Of pairs: the rejected side says the right answer so, and the pair is about form. Default: as the chosen side,
    with a wrong answer."""


class Labels(Section):
    """What people said of stored responses."""

    column: str | None = None
    """Rows are single judged responses (completion_column) with this label: true or false for kto, a number for
    reward_model. null: rows are pairs (`chosen`, `rejected`)."""
    range: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """Least and greatest rating; one outside is a bad row."""
    margin_column: str | None = None
    """Of pairs: by how much chosen is better (reward_model)."""


class Data(Section):
    """Prompts (or preference pairs), one of `path` and `reasoning_gym`."""

    path: str | None = None
    """JSONL or Parquet file, a `datasets` directory, or a hub id."""
    split: str = "train"
    """Of a hub data set or a `datasets` directory."""
    subset: str | None = None
    """Which of a hub data set's configurations, where it has several."""
    reasoning_gym: ReasoningGym | None = None
    prompt_column: str = "prompt"
    """Holds the prompt: text, or a list of messages."""
    messages_column: str | None = None
    """Holds a conversation as messages; read instead of `prompt_column`."""
    completion_column: str = "completion"
    """Of demonstrations (sft) and judged responses: what the assistant says to the prompt."""
    labels: Labels = Labels()
    system_prompt: str | None = None
    """Put before a conversation that has none of its own."""
    suffix: str = ""
    """Appended to each prompt's text, e.g. an answer format."""
    shuffle: bool = True
    """Draw the order of every epoch by the seed; false: rows come as they stand."""
    heldout: int = Field(default=0, ge=0)
    """Rows kept for evaluation, disjoint from training by prompt text."""
    skip_invalid: int = Field(default=0, ge=0)
    """Invalid rows tolerated (skipped and counted); 0 is strict."""
    overlong: Literal["refuse", "truncate_left", "drop"] = "refuse"
    """A row that does not fit the window is an error, loses the beginning of its prompt, or is left out and counted."""
