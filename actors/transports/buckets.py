"""Tensors to weight buckets and back.

In: named tensors in an order that every publisher of the policy keeps. Out: WeightBuckets of bounded size whose bytes
are the tensors' own, bfloat16 included (numpy has no such type, so `data` is bytes); and, from a bucket, the tensors
again. Left out: gathering shards (the learner's), transport, digests of whole versions (actors.types).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from actors.transports.interface import DeviceBucket
from actors.types import WeightBucket


def make_buckets(named: Iterable[tuple[str, torch.Tensor]], max_bytes: int) -> Iterator[WeightBucket]:
    """Cut a stream of tensors into buckets of at most `max_bytes` (a longer tensor alone fills its own)."""
    for index, last, held in cut(named, max_bytes):
        yield make_bucket(index, last, held)


def cut(
    named: Iterable[tuple[str, torch.Tensor]], max_bytes: int
) -> Iterator[tuple[int, bool, list[tuple[str, torch.Tensor]]]]:
    """(index, whether it is the last, its tensors) of each bucket."""
    index, size = 0, 0
    held: list[tuple[str, torch.Tensor]] = []
    for name, tensor in named:
        if held and size + tensor.nbytes > max_bytes:
            yield index, False, held
            index, held, size = index + 1, [], 0
        held.append((name, tensor))
        size += tensor.nbytes
    yield index, True, held


def make_bucket(index: int, last: bool, named: list[tuple[str, torch.Tensor]]) -> WeightBucket:
    """One bucket of these tensors, laid end to end in their own dtypes."""
    flat = [t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for _, t in named]
    return WeightBucket(
        index=index,
        last=last,
        names=tuple(name for name, _ in named),
        shapes=tuple(tuple(t.shape) for _, t in named),
        dtypes=tuple(str(t.dtype).removeprefix("torch.") for _, t in named),
        data=np.concatenate(flat) if flat else np.zeros(0, np.uint8),
    )


def bucket_bytes(bucket: WeightBucket | DeviceBucket) -> int:
    """How long `data` must be by the bucket's own shapes and dtypes."""
    sizes = (math.prod(s) * _dtype(d).itemsize for s, d in zip(bucket.shapes, bucket.dtypes, strict=True))
    return sum(sizes)


def tensors_of(bucket: WeightBucket | DeviceBucket) -> Iterator[tuple[str, torch.Tensor]]:
    """The bucket's tensors by name, each a copy that the taker may change, on the device where the data lies."""
    return ((name, tensor.clone()) for name, tensor in views_of(bucket))


def views_of(bucket: WeightBucket | DeviceBucket) -> Iterator[tuple[str, torch.Tensor]]:
    """The bucket's tensors by name, to be read only: they are its own memory, which lives as long as one of them. A
    part that does not begin at a multiple of its item size is copied."""
    data = _read_only(bucket.data) if isinstance(bucket.data, np.ndarray) else bucket.data
    begin = 0
    for name, shape, dtype in zip(bucket.names, bucket.shapes, bucket.dtypes, strict=True):
        kind = _dtype(dtype)
        end = begin + math.prod(shape) * kind.itemsize
        part = data[begin:end]
        aligned = part if begin % kind.itemsize == part.data_ptr() % kind.itemsize == 0 else part.clone()
        yield name, aligned.view(kind).view(shape)
        begin = end


def _read_only(data: np.ndarray) -> torch.Tensor:
    """uint8 [n], the array's own memory. torch has no read-only tensors and warns of an array that is one, as
    all of the object store are; that nobody writes is the taker's promise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(data)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"a weight bucket names the dtype {name}, which torch does not have")
    return found
