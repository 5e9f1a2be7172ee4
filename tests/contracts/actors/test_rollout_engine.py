"""What a rollout engine promises (actors/engines/interface.py), shown on vLLM and on its transformers twin alike.

A tiny model in float32, loaded once per engine for the whole file; weight updates are in test_vllm_weights.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from actors.engines.interface import EngineSettings, Request, RolloutEngine
from actors.engines.limits import end_tokens
from actors.models.forward import Barred, score_tokens
from actors.types import FinishReason
from learners.engines.models import load_policy
from learners.engines.settings import ModelSettings
from tests.fixtures.columns import CPU, batch_of, sample
from tests.fixtures.engines import ENGINES, start_engine
from tests.fixtures.tiny_model import make_tiny_model, make_tiny_tokenizer

EOS = 1
PROMPTS = [(2, 10, 20, 30, 40), (2, 11, 5), (2, 12, 50, 51, 52, 53, 54, 55), (2, 13)]
LONG = 48


@dataclass
class Made:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason | None = None


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, model_path):
    engine = start_engine(request.param, settings(model_path))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def twins(model_path):
    engines = [start_engine(kind, settings(model_path)) for kind in ENGINES]
    yield engines
    for engine in engines:
        engine.close()


def settings(model_path) -> EngineSettings:
    return EngineSettings(str(model_path), dtype="float32", max_model_len=LONG, max_num_seqs=8, kv_cache_bytes=1 << 26)


def request(prompt: int, **changes) -> Request:
    base = Request(f"r{prompt}", PROMPTS[prompt % 4], temperature=1.0, max_tokens=12, seed=1000 + prompt)
    return replace(base, **changes)


def run(engine: RolloutEngine, requests: Iterable[Request], steps: int | None = None) -> dict[str, Made]:
    """Add all, then step until all are finished (or `steps` times)."""
    made: dict[str, Made] = defaultdict(Made)
    waiting = set()
    for r in requests:
        engine.add_request(r)
        waiting.add(r.id)
    taken = 0
    while waiting and taken != steps:
        for output in engine.step():
            row = made[output.request_id]
            assert row.reason is None, "no output follows a finish"
            assert len(output.token_ids) == len(output.logprobs)
            row.tokens += output.token_ids
            row.logprobs += output.logprobs
            row.reason = output.finish_reason
            if row.reason is not None:
                waiting.discard(output.request_id)
        taken += 1
        assert taken < 200, f"requests that never finish: {waiting}"
    return dict(made)


def score(engine: RolloutEngine, made: dict[str, Made], requests: list[Request]) -> list[np.ndarray]:
    return engine.logprobs([r.prompt_tokens for r in requests], [made[r.id].tokens for r in requests])


def test_greedy_tokens_are_the_same_in_both_engines(twins):
    requests = [request(i, temperature=0.0, ignore_eos=True) for i in range(4)]
    a, b = (run(engine, requests) for engine in twins)
    assert all(len(a[r.id].tokens) == 12 for r in requests)
    assert {i: m.tokens for i, m in a.items()} == {i: m.tokens for i, m in b.items()}


def test_sampled_tokens_and_logprobs_are_the_same_in_both_engines(twins):
    requests = [request(i, temperature=0.8, ignore_eos=i % 2 == 0) for i in range(16)]
    a, b = (run(engine, requests) for engine in twins)
    for r in requests:
        assert a[r.id].tokens == b[r.id].tokens and a[r.id].reason == b[r.id].reason
        np.testing.assert_allclose(a[r.id].logprobs, b[r.id].logprobs, atol=1e-4)


def test_scoring_is_the_same_in_both_engines(twins):
    responses = [[5, 6, 7], [99], [], list(range(20, 50))]
    a, b = (engine.logprobs(PROMPTS, responses) for engine in twins)
    for x, y, response in zip(a, b, responses, strict=True):
        assert x.dtype == y.dtype == np.float32 and len(x) == len(y) == len(response)
        np.testing.assert_allclose(x, y, atol=1e-4)


def test_logprobs_of_sampled_tokens_are_those_of_scoring_them(engine):
    requests = [request(i) for i in range(8)]
    made = run(engine, requests)
    for r, scored in zip(requests, score(engine, made, requests), strict=True):
        np.testing.assert_allclose(made[r.id].logprobs, scored, atol=1e-4)


def test_scoring_reaches_the_last_token_of_a_full_window(engine):
    response = list(range(4, 4 + LONG - 2))
    full, shorter = engine.logprobs([(2, 13), (2, 13)], [response, response[:-1]])
    assert len(full) == LONG - 2
    np.testing.assert_allclose(full[:-1], shorter, atol=1e-5)
    assert np.isfinite(full).all() and (full < 0).all()


def test_temperature_scales_the_logprobs_that_come_back(engine):
    """At temperature T a token's log-prob is log softmax(logits / T). Log-probs are logits up to a constant, so the
    whole vocabulary scored at temperature 1 gives the expected value."""
    vocabulary = len(make_tiny_tokenizer())
    at_one = np.array(engine.logprobs([PROMPTS[0]] * vocabulary, [[v] for v in range(vocabulary)]))[:, 0]
    made = run(engine, [request(i * 4, temperature=0.5, max_tokens=1) for i in range(6)])
    warmed = at_one / 0.5
    expected = warmed - np.log(np.exp(warmed).sum())
    for row in made.values():
        assert row.logprobs[0] == pytest.approx(expected[row.tokens[0]], abs=1e-4)
    assert max(abs(expected[m.tokens[0]] - at_one[m.tokens[0]]) for m in made.values()) > 0.1


def test_top_k_logprobs_sum_over_the_kept_tokens_only(engine):
    """With k = 2 the two candidates' probabilities add to one."""
    made = run(engine, [request(i * 4, top_k=2, max_tokens=1) for i in range(12)])
    seen = {m.tokens[0]: np.exp(m.logprobs[0]) for m in made.values()}
    assert len(seen) == 2
    assert sum(seen.values()) == pytest.approx(1.0, abs=1e-4)


def test_a_sample_depends_on_its_seed_not_on_company_order_or_history(engine):
    requests = [request(i) for i in range(8)]
    first = run(engine, requests)
    again = run(engine, requests[::-1])
    alone = run(engine, [requests[5]])
    assert {i: m.tokens for i, m in again.items()} == {i: m.tokens for i, m in first.items()}
    assert alone["r5"].tokens == first["r5"].tokens
    other = run(engine, [replace(requests[5], seed=77)])
    assert other["r5"].tokens != first["r5"].tokens


def test_a_response_begun_elsewhere_goes_on_with_the_draws_that_it_would_have_had(engine):
    requests = [request(i, ignore_eos=True) for i in range(6)]
    whole = run(engine, requests)

    def rest_of(r: Request, at: int) -> Request:
        return replace(r, prompt_tokens=(*r.prompt_tokens, *whole[r.id].tokens[:at]), max_tokens=12 - at, made=at)

    rest = run(engine, [rest_of(r, 3 + i) for i, r in enumerate(requests)])
    for i, r in enumerate(requests):
        assert rest[r.id].tokens == whole[r.id].tokens[3 + i :]
        np.testing.assert_allclose(rest[r.id].logprobs, whole[r.id].logprobs[3 + i :], atol=1e-4)
    afresh = run(engine, [replace(rest_of(r, 3), made=0) for r in requests])
    assert any(afresh[r.id].tokens != whole[r.id].tokens[3:] for r in requests), "draws from the start are others"


def test_the_same_wave_gives_the_same_bits_whatever_ran_before(engine):
    """Prompts longer than a block of the cache: what the first wave read must not stand in for it in the second."""
    long = tuple(range(4, 44))
    requests = [request(i, prompt_tokens=(*long, 50 + i), max_tokens=5) for i in range(8)]
    first = run(engine, requests)
    run(engine, [request(i, prompt_tokens=long, seed=i, max_tokens=6) for i in range(3)])
    again = run(engine, requests)
    assert {i: m.logprobs for i, m in again.items()} == {i: m.logprobs for i, m in first.items()}


def test_more_requests_than_seats_all_finish(engine):
    made = run(engine, [request(i, ignore_eos=True, max_tokens=4) for i in range(20)])
    assert len(made) == 20 and all(len(m.tokens) == 4 for m in made.values())


def test_requests_may_join_while_others_run(engine):
    early, late = request(0, ignore_eos=True), request(1, ignore_eos=True)
    expected = {**run(engine, [early]), **run(engine, [late])}
    begun = run(engine, [early], steps=5)
    rest = run(engine, [late])
    assert rest["r1"].tokens == expected["r1"].tokens
    assert begun["r0"].tokens + rest["r0"].tokens == expected["r0"].tokens


def test_eos_is_the_last_token_once_and_has_its_logprob(engine):
    requests = [request(i, max_tokens=40) for i in range(32)]
    made = run(engine, requests)
    stopped = [r for r in requests if made[r.id].reason is FinishReason.STOP]
    assert len(stopped) >= 2
    for r in stopped:
        assert made[r.id].tokens.index(EOS) == len(made[r.id].tokens) - 1
    for r, scored in zip(stopped, score(engine, made, stopped), strict=True):
        np.testing.assert_allclose(made[r.id].logprobs[-1], scored[-1], atol=1e-4)


def test_ignore_eos_goes_on_past_it(engine):
    ended = {i: m for i, m in run(engine, [request(i, max_tokens=30) for i in range(32)]).items() if EOS in m.tokens}
    i, m = min(ended.items(), key=lambda item: len(item[1].tokens))
    on = run(engine, [request(int(i[1:]), max_tokens=30, ignore_eos=True)])[i]
    assert on.tokens[: len(m.tokens)] == m.tokens and len(on.tokens) == 30 and on.reason is FinishReason.LENGTH


def test_min_tokens_keeps_eos_away_until_then(engine):
    made = run(engine, [request(i, max_tokens=12, min_tokens=10) for i in range(32)])
    assert all(EOS not in m.tokens[:10] and len(m.tokens) > 10 for m in made.values())


def test_log_probs_under_a_least_length_are_those_of_a_model_whose_end_tokens_are_barred_until_then(engine, model_path):
    asked = [request(i, max_tokens=12, min_tokens=10, temperature=0.8) for i in range(8)]
    made = run(engine, asked)
    samples = [
        sample(i, 0, r.prompt_tokens, made[r.id].tokens, logprobs=made[r.id].logprobs) for i, r in enumerate(asked)
    ]
    model = load_policy(ModelSettings(str(model_path), dtype="float32"))

    def gap(barred):
        batch = batch_of(*samples)
        slots, found = score_tokens(model, batch, range(8), max_tokens=99, temperature=0.8, device=CPU, barred=barred)
        return np.abs(found - batch.logprobs[slots]).max()

    assert gap(Barred(end_tokens(str(model_path)), 10)) < 1e-4
    assert gap(None) > 1e-3


def test_length_is_bounded_by_max_tokens_and_by_the_window(engine):
    made = run(engine, [request(0, max_tokens=3, ignore_eos=True), request(1, max_tokens=999, ignore_eos=True)])
    assert (len(made["r0"].tokens), made["r0"].reason) == (3, FinishReason.LENGTH)
    assert (len(made["r1"].tokens), made["r1"].reason) == (LONG - 3, FinishReason.LENGTH)


def test_a_prompt_without_room_for_a_token_is_refused(engine):
    with pytest.raises(ValueError, match=f"no room within max_model_len {LONG}"):
        engine.add_request(request(0, prompt_tokens=tuple(range(4, 4 + LONG))))
    assert engine.step() == []


def test_two_requests_of_one_id_are_refused(engine):
    engine.add_request(request(0))
    with pytest.raises(ValueError, match="r0 is already running"):
        engine.add_request(request(0))
    engine.abort(["r0"])


def test_a_stop_string_ends_the_sample_with_the_token_that_completes_it(engine):
    """The tokenizer has one character a token, so the string made of two drawn tokens ends right after the second."""
    tokenizer = make_tiny_tokenizer()
    free = run(engine, [request(0, ignore_eos=True, max_tokens=20)])["r0"].tokens
    end = next(i for i in range(2, 20) if min(free[i - 1 : i + 1]) >= 4)
    stop = tokenizer.decode(free[end - 1 : end + 1])
    first = next(i for i in range(20) if tokenizer.decode(free[: i + 1]).find(stop) >= 0)
    row = run(engine, [request(0, ignore_eos=True, max_tokens=20, stop=("never made", stop))])["r0"]
    assert row.reason is FinishReason.STOP
    assert row.tokens == free[: first + 1] and len(row.logprobs) == first + 1


def test_aborted_requests_make_no_more_output_and_the_rest_goes_on(engine):
    expected = run(engine, [request(1, ignore_eos=True)])["r1"].tokens
    begun = run(engine, [request(0, ignore_eos=True), request(1, ignore_eos=True)], steps=3)
    engine.abort(["r0", "unknown"])
    rest = run(engine, [request(2)])
    assert set(rest) == {"r1", "r2"}
    assert begun["r1"].tokens + rest["r1"].tokens == expected
    assert engine.step() == []


def test_scoring_beside_running_requests_loses_none_of_their_tokens(engine):
    expected = run(engine, [request(0, ignore_eos=True)])["r0"].tokens
    alone = engine.logprobs([PROMPTS[1]], [[5, 6, 7]])[0]
    begun = run(engine, [request(0, ignore_eos=True)], steps=3)
    beside = engine.logprobs([PROMPTS[1]], [[5, 6, 7]])[0]
    tokens = begun["r0"].tokens
    reason = None
    while reason is None:
        for output in engine.step():
            tokens += output.token_ids
            reason = output.finish_reason
    assert tokens == expected
    np.testing.assert_allclose(beside, alone, atol=1e-4)


@pytest.mark.parametrize(("device", "given", "expected"), [("cpu", 7 << 20, 1 << 30), ("cuda", 7 << 20, 7 << 20)])
def test_vllm_takes_the_cache_that_it_is_given_beside_a_learner_and_else_measures(device, given, expected, model_path):
    from actors.engines.vllm.engine import _engine_args

    own, beside = (EngineSettings(str(model_path), gpu_cache_bytes=size) for size in (None, given))
    assert _engine_args(beside, device).kv_cache_memory_bytes == expected
    assert _engine_args(own, device).kv_cache_memory_bytes == (1 << 30 if device == "cpu" else None)
