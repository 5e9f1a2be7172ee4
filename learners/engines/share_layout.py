"""What of each parameter a rank's share holds, and which copies make one cut of a model out of another.

In: names and sizes of parameters in the order in which they lie, and where a rank's part of them begins. Out: layouts
(written beside the tensors), and the copies that fill a new share from old ones. Pure arithmetic: no tensor is touched.
Left out: where DeepSpeed keeps what (zero_shards.py), the files (training_state.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` elements of a parameter, the first being element `start` of the flattened parameter, that lie from
    element `at` of a flat tensor."""

    name: str
    start: int
    at: int
    length: int


Layout = dict[str, tuple[Piece, ...]]
"""By a tensor's key, what it holds. What no piece covers is padding."""


@dataclass(frozen=True, slots=True)
class Copy:
    """`length` elements of an old share's tensor `key`, its element `source` first, to element `at` of a new tensor."""

    share: int
    key: str
    source: int
    at: int
    length: int


def whole(sizes: Iterable[tuple[str, int]]) -> Layout:
    """Every parameter a tensor of its own (no ZeRO)."""
    return {name: (Piece(name, 0, 0, size),) for name, size in sizes}


def window(sizes: Iterable[tuple[str, int]], begin: int, length: int) -> tuple[Piece, ...]:
    """Elements `begin` to `begin + length` of the parameters laid end to end (ZeRO 1 and 2: a rank's share begins and
    ends anywhere; the last is padded at its end)."""
    pieces, before = [], 0
    for name, size in sizes:
        first, last = max(before, begin), min(before + size, begin + length)
        if first < last:
            pieces.append(Piece(name, first - before, first - begin, last - first))
        before += size
    return tuple(pieces)


def slices(sizes: Iterable[tuple[str, int, int]], rank: int) -> tuple[Piece, ...]:
    """Slice `rank` of every parameter, laid end to end (ZeRO 3). sizes: name, elements, and elements of one slice: all
    ranks' slices are equal, so those of the last ranks are padded, each by itself."""
    pieces, at = [], 0
    for name, size, slice_size in sizes:
        start = rank * slice_size
        if start < size:
            pieces.append(Piece(name, start, at, min(slice_size, size - start)))
        at += slice_size
    return tuple(pieces)


def copies(wanted: Layout, shares: Sequence[Layout]) -> dict[str, list[Copy]]:
    """What fills each tensor of `wanted` from the old shares, of them only what overlaps. ValueError naming the first
    parameter that they do not cover."""
    held: dict[str, list[tuple[Piece, int, str]]] = {}
    for share, layout in enumerate(shares):
        for key, pieces in layout.items():
            for piece in pieces:
                held.setdefault(piece.name, []).append((piece, share, key))
    for parts in held.values():
        parts.sort(key=lambda part: part[0].start)
    return {
        key: [c for piece in pieces for c in _fill(piece, held.get(piece.name, []))] for key, pieces in wanted.items()
    }


def _fill(piece: Piece, parts: Iterable[tuple[Piece, int, str]]) -> Iterator[Copy]:
    """parts: of this parameter in the old shares, in its order."""
    done, end = piece.start, piece.start + piece.length
    for old, share, key in parts:
        if done == end or old.start > done:
            break
        length = min(end, old.start + old.length) - done
        if length > 0:
            yield Copy(share, key, old.at + done - old.start, piece.at + done - piece.start, length)
            done += length
    if done < end:
        raise ValueError(
            f"no saved share holds element {done} of the parameter {piece.name}; take an earlier checkpoint"
        )


def to_json(layout: Layout) -> str:
    return json.dumps({key: [astuple(piece) for piece in pieces] for key, pieces in layout.items()})


def from_json(text: str) -> Layout:
    return {key: tuple(Piece(*piece) for piece in pieces) for key, pieces in json.loads(text).items()}
