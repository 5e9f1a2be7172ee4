"""The built-in reward functions, in the calling convention of this package (see its docstring).

In: one sample's prompt, response and data. Out: a float. Heavy packages are imported by the function that needs them.
They run in the reward process like any other function. Left out: weights and sums (runner.py).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

# A minus belongs to the number unless it stands between two operands, as in 10-3 or f(2)-3.
NUMBER = re.compile(r"(?:(?<![\d)])-)?\d[\d,]*(?:\.\d+)?")


def exact_match(
    prompt: str, response: str, data: Mapping[str, Any], *, key: str = "answer", ignore_case: bool = False
) -> float:
    """1 if the response, whitespace folded, is data[key], else 0."""
    given, wanted = " ".join(response.split()), " ".join(str(data[key]).split())
    if ignore_case:
        given, wanted = given.casefold(), wanted.casefold()
    return float(given == wanted)


def last_number(
    prompt: str, response: str, data: Mapping[str, Any], *, key: str = "answer", tolerance: float = 1e-6
) -> float:
    """1 if the last number in the response equals data[key] within `tolerance`, else 0."""
    wanted = find_last_number(str(data[key]))
    if wanted is None:
        raise ValueError(f"data[{key!r}] holds no number: {data[key]!r}")
    given = find_last_number(response)
    return float(given is not None and abs(given - wanted) <= tolerance)


def find_last_number(text: str) -> float | None:
    """The last number written in `text`, thousands commas allowed, or None."""
    found = NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return float(found[-1].replace(",", "")) if found else None


def math_verify(prompt: str, response: str, data: Mapping[str, Any], *, key: str = "answer") -> float:
    """1 if math-verify finds the response's answer mathematically equal to data[key] (LaTeX or plain), else 0."""
    from math_verify import parse, verify

    wanted = str(data[key])
    gold = parse(f"${wanted}$" if "\\" in wanted and "$" not in wanted else wanted)
    if not gold:
        raise ValueError(f"math-verify finds no answer in data[{key!r}]: {wanted!r}")
    return float(verify(gold, parse(response)))


def reasoning_gym(
    prompt: str, response: str, data: Mapping[str, Any], *, task: str | None = None, extract: str = "tag"
) -> float:
    """The task's own score, in [0, 1], of the answer in the response.

    extract: tag (inside <answer>...</answer>, the whole response where there is none), last_line or last_number.
    `task` is needed only where the prompts were not made from a reasoning_gym task (data["task"]).
    """
    name = task or data["task"]
    params = json.dumps(dict(data["task_params"]) if "task_params" in data else {}, sort_keys=True)
    entry = {"question": data["prompt"], "answer": data["answer"], "metadata": data["metadata"]}
    return float(_task(name, params).score_answer(_extract(response, extract), entry))


@functools.lru_cache(maxsize=64)
def _task(name: str, params: str) -> Any:
    import reasoning_gym as gym

    return gym.create_dataset(name, size=1, seed=0, **json.loads(params))


def _extract(response: str, how: str) -> str:
    if how == "tag":
        tagged = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
        return (tagged[-1] if tagged else response).strip()
    if how == "last_line":
        lines = response.strip().splitlines()
        return lines[-1].strip() if lines else ""
    if how == "last_number":
        number = find_last_number(response)
        return "" if number is None else f"{number:g}" if number % 1 else str(int(number))
    raise ValueError(f"extract must be tag, last_line or last_number, got {how!r}")


def regex(prompt: str, response: str, data: Mapping[str, Any], *, pattern: str) -> float:
    """1 if the pattern is found in the response, stripped of outer whitespace, else 0. ^ and $ are its ends."""
    return float(re.search(pattern, response.strip()) is not None)


def length_penalty(prompt: str, response: str, data: Mapping[str, Any], *, max_tokens: int, cache_tokens: int) -> float:
    """DAPO's soft overlong punishment (Yu et al. 2025, eq. 13) of data["response_tokens"] tokens:
    0 up to max_tokens - cache_tokens, then linearly down to -1 at max_tokens, and -1 beyond."""
    over = data["response_tokens"] - (max_tokens - cache_tokens)
    return -min(max(over / cache_tokens, 0.0), 1.0)


def repetition_penalty(
    prompt: str, response: str, data: Mapping[str, Any], *, n: int = 3, max_penalty: float = 1.0
) -> float:
    """-max_penalty times the share of word n-grams that repeat an earlier one; 0 for fewer than n words."""
    words = response.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return -max_penalty * (1 - len(set(grams)) / len(grams)) if grams else 0.0


def sentiment(prompt: str, response: str, data: Mapping[str, Any]) -> float:
    """VADER's compound sentiment of the response, in [-1, 1]."""
    return float(_vader().polarity_scores(response)["compound"])


@functools.lru_cache(maxsize=1)
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
