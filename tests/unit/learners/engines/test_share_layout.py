"""Layouts of shares and the copies between them, by hand: parameters a (5 elements), b (3) and c (2)."""

from __future__ import annotations

import pytest

from learners.engines.share_layout import Copy, Piece, copies, from_json, slices, to_json, whole, window

SIZES = [("a", 5), ("b", 3), ("c", 2)]


def windows(ranks: int, length: int) -> list[dict]:
    """The shares of `ranks` ranks in ZeRO 1 or 2: ten elements and the padding after them, in equal lengths."""
    return [{"g": window(SIZES, rank * length, length)} for rank in range(ranks)]


def slicings(ranks: int) -> list[dict]:
    """The shares of `ranks` ranks in ZeRO 3."""
    sizes = [(name, size, -(-size // ranks)) for name, size in SIZES]
    return [{"g": slices(sizes, rank)} for rank in range(ranks)]


def test_windows_cut_parameters_anywhere_and_leave_the_padding_at_the_end_uncovered():
    assert windows(3, 4) == [
        {"g": (Piece("a", 0, 0, 4),)},
        {"g": (Piece("a", 4, 0, 1), Piece("b", 0, 1, 3))},
        {"g": (Piece("c", 0, 0, 2),)},  # two of padding follow
    ]
    assert windows(2, 6) == [
        {"g": (Piece("a", 0, 0, 5), Piece("b", 0, 5, 1))},
        {"g": (Piece("b", 1, 0, 2), Piece("c", 0, 2, 2))},
    ]


def test_slices_cut_every_parameter_equally_and_pad_each():
    # Of 3 ranks: a in slices of 2, b of 1, c of 1; the last rank has one of a, then padding, one of b, padding for c.
    assert slicings(3) == [
        {"g": (Piece("a", 0, 0, 2), Piece("b", 0, 2, 1), Piece("c", 0, 3, 1))},
        {"g": (Piece("a", 2, 0, 2), Piece("b", 1, 2, 1), Piece("c", 1, 3, 1))},
        {"g": (Piece("a", 4, 0, 1), Piece("b", 2, 2, 1))},
    ]


def test_three_windows_become_two():
    old = windows(3, 4)
    first, second = windows(2, 6)
    assert copies(first, old) == {"g": [Copy(0, "g", 0, 0, 4), Copy(1, "g", 0, 4, 1), Copy(1, "g", 1, 5, 1)]}
    assert copies(second, old) == {"g": [Copy(1, "g", 2, 0, 2), Copy(2, "g", 0, 2, 2)]}


def test_slices_become_whole_parameters_and_windows():
    old = slicings(3)
    assert copies(whole(SIZES), old) == {
        "a": [Copy(0, "g", 0, 0, 2), Copy(1, "g", 0, 2, 2), Copy(2, "g", 0, 4, 1)],
        "b": [Copy(0, "g", 2, 0, 1), Copy(1, "g", 2, 1, 1), Copy(2, "g", 2, 2, 1)],
        "c": [Copy(0, "g", 3, 0, 1), Copy(1, "g", 3, 1, 1)],
    }
    # The second of two windows is b[1:3] and c, whatever the order of the shares.
    assert copies(windows(2, 6)[1], old[::-1])["g"] == [
        Copy(1, "g", 2, 0, 1),
        Copy(0, "g", 2, 1, 1),
        Copy(2, "g", 3, 2, 1),
        Copy(1, "g", 3, 3, 1),
    ]


def test_a_whole_parameter_is_cut_into_what_a_share_needs():
    assert copies(slicings(3)[1], [whole(SIZES)]) == {
        "g": [Copy(0, "a", 2, 0, 2), Copy(0, "b", 1, 2, 1), Copy(0, "c", 1, 3, 1)]
    }


def test_a_share_of_padding_alone_is_filled_by_nothing():
    assert copies({"g": window(SIZES, 10, 4)}, windows(3, 4)) == {"g": []}


@pytest.mark.parametrize(
    ("lost", "said"),
    [(0, "element 0 of the parameter a"), (1, "element 4 of the parameter a"), (2, "element 0 of .* c")],
)
def test_what_no_share_holds_is_named(lost, said):
    left = [layout for rank, layout in enumerate(windows(3, 4)) if rank != lost]
    with pytest.raises(ValueError, match=f"no saved share holds {said}; take an earlier checkpoint"):
        copies(whole(SIZES), left)


def test_a_layout_comes_back_from_json():
    layout = whole(SIZES) | windows(3, 4)[1]
    assert from_json(to_json(layout)) == layout
