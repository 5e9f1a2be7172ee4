"""Rewards for tests: checkable by eye, learnable in a few steps."""


def digit_share(prompt: str, response: str, data: dict) -> float:
    """The share of characters that are digits."""
    return sum(c.isdigit() for c in response) / max(1, len(response))


def paced_digit_share(prompt: str, response: str, data: dict) -> float:
    """The same, while the test holds the run back."""
    if Path(os.environ[SLOW]).exists():
        time.sleep(0.05)
    return digit_share(prompt, response, data)
