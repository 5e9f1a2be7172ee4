"""The samples of a step as one Parquet file: what was asked, what came back, what each token was worth.

In: `SampleRecord`s of a step. Out: samples/step-000012.parquet, written whole or not at all, and records read back.
Numbers that are not finite become null, as in metrics.jsonl. Token columns are float32. Left out: which samples of a
step are kept (the driver chooses `tracking.samples_per_step` of them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import UserError
from cluster.run.directory import atomic_path

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("group", pa.int64(), nullable=False),
        pa.field("prompt_id", pa.int64(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("parts", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("error", pa.string()),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("version", pa.int64(), nullable=False),
        pa.field("kl", pa.float64()),
        pa.field("tokens", pa.list_(pa.string()), nullable=False),
        pa.field("logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("token_kl", pa.list_(pa.float32()), nullable=False),
        pa.field("advantages", pa.list_(pa.float32()), nullable=False),
        pa.field("values", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One sample as people look at it.

    step: the training step that used it. version: the oldest policy version among its tokens. score: None is no score
    (`error` says why), never 0. parts: each reward's own score. finish_reason: "stop", "length" or "abort". kl: mean
    per token of the policy's own to the reference, in nats. tokens: each response token's own text; logprobs (of the
    rollout policy), token_kl, advantages, values: one number a token, or empty (values: None) where the method has
    none; None on tokens that the environment wrote.
    """

    step: int
    group: int
    prompt_id: int
    sample_index: int
    prompt: str
    response: str
    score: float | None
    parts: Mapping[str, float | None]
    error: str | None
    finish_reason: str
    version: int
    kl: float | None
    tokens: Sequence[str]
    logprobs: Sequence[float | None]
    token_kl: Sequence[float | None]
    advantages: Sequence[float | None]
    values: Sequence[float | None] | None = None

    def __post_init__(self) -> None:
        for name in ("logprobs", "token_kl", "advantages", "values"):
            column = getattr(self, name)
            if column is not None and len(column) not in (0, len(self.tokens)):
                raise ValueError(
                    f"sample {self.sample_index} of group {self.group}: {len(column)} {name} for {len(self.tokens)} "
                    "tokens; give one a token, or none"
                )


def write_samples(path: Path, records: Sequence[SampleRecord]) -> None:
    """Write a step's samples to `path` (`RunDirectory.samples_file(step)`), replacing what was there."""
    columns = {name: [_storable(record, name) for record in records] for name in SCHEMA.names}
    table = pa.table(columns, schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_samples(path: Path) -> list[SampleRecord]:
    """The samples in a file, in the order written. UserError if it is not such a file."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())}); remove it") from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise UserError(f"{path} has no column {missing[0]}; it is not a samples file of this version")
    rows = table.select(SCHEMA.names).to_pylist()
    return [SampleRecord(**{name: _restored(name, row[name]) for name in SCHEMA.names}) for row in rows]


def _storable(record: SampleRecord, name: str) -> Any:
    value = getattr(record, name)
    match name:
        case "parts":
            return [(_text(part), _finite(score)) for part, score in value.items()]
        case "score" | "kl":
            return _finite(value)
        case "tokens":
            return [_text(token) for token in value]
        case "logprobs" | "token_kl" | "advantages" | "values":
            return None if value is None else [_finite(number) for number in value]
        case "prompt" | "response" | "error" | "finish_reason":
            return None if value is None else _text(value)
        case _:
            return value


def _restored(name: str, value: Any) -> Any:
    if name == "parts":
        return dict(value)
    return tuple(value) if isinstance(value, list) else value


def _finite(number: float | None) -> float | None:
    return float(number) if number is not None and math.isfinite(number) else None


def _text(text: str) -> str:
    """Parquet holds UTF-8; half a surrogate pair, which a decoder may leave, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


if {field.name for field in fields(SampleRecord)} != set(SCHEMA.names):
    raise TypeError("SampleRecord and its Parquet schema name different columns")
