"""Rewards for tests: checkable by eye, learnable in a few steps."""


def digit_share(prompt: str, response: str, data: dict) -> float:
    """The share of characters that are digits."""
    return sum(c.isdigit() for c in response) / max(1, len(response))
