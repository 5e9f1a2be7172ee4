"""Rewards for tests: checkable by eye, learnable in a few steps."""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

SLOW = "RAYLIGN_TEST_SLOW"
"""In a run's environment: a file during whose life every sample takes 50 ms to score, so that a test can do something
to a run before it is over, on however slow a machine."""


def digit_share(prompt: str, response: str, data: dict) -> float:
    """The share of characters that are digits."""
    return sum(c.isdigit() for c in response) / max(1, len(response))


def paced_digit_share(prompt: str, response: str, data: dict) -> float:
    """The same, while the test holds the run back."""
    if Path(os.environ[SLOW]).exists():
        time.sleep(0.05)
    return digit_share(prompt, response, data)


def spotty_digit_share(prompt: str, response: str, data: dict) -> float:
    """The same, but for one prompt in eight, which has no score whatever the response."""
    return digit_share(prompt, response, data) if zlib.crc32(prompt.encode()) % 8 else float("nan")
