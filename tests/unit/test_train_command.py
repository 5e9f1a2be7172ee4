"""`raylign train` as it ends: what signals do."""

import signal

import pytest

from cluster.commands.train import _interrupt


def test_a_run_is_interrupted_once_whatever_comes_after():
    """A second KeyboardInterrupt, within what the first one unwinds, once left a lock held for ever."""
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
