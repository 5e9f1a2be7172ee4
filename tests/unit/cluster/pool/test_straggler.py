"""Who decodes far slower than the others: on a clock that the test moves, with step times that can be divided by hand.

The others' steps take 0.02 s for 8 tokens, or 0.01 s for one that reads a single one, unless a test says otherwise.
"""

from __future__ import annotations

import dataclasses

import pytest

from actors.rollouts.pace import Pace
from cluster.pool.members.straggler import Rests, Stragglers

LOOK_S = 0.25


class Decoder:
    """A worker that decodes without a break."""

    def __init__(self, step_s: float, tokens: int = 8) -> None:
        self.step_s, self.tokens = step_s, tokens
        self.pace = Pace(running=tokens)
        self._owed_s = 0.0

    def go_on(self, seconds: float) -> None:
        """Steps that end in this time; what is left is the step under way."""
        time_s = self._owed_s + seconds
        steps = int(time_s / self.step_s + 1e-9)
        self._owed_s = time_s - steps * self.step_s
        self.pace = dataclasses.replace(
            self.pace,
            steps=self.pace.steps + steps,
            seconds=self.pace.seconds + steps * self.step_s,
            tokens=self.pace.tokens + steps * self.tokens,
            running=self.tokens,
            step_s=self._owed_s,
        )


class Pool:
    """Workers by name, looked at one after the other every quarter of a second."""

    def __init__(self, factor: float = 5.0, **workers: Decoder) -> None:
        self.workers = workers
        self.policy = Stragglers(factor)
        self.now = 0.0

    def look(self, idle: tuple[str, ...] = ()) -> dict[str, str]:
        """Who is found slow after another quarter of a second, and the words for it."""
        self.now += LOOK_S
        found = {}
        for name, worker in self.workers.items():
            if name not in idle:
                worker.go_on(LOOK_S)
            others = [other for other in self.workers if other != name]
            if (slow := self.policy.look(name, worker.pace, others, self.now)) is not None:
                found[name] = str(slow)
        return found

    def until_found(self, looks: int = 400, **more) -> tuple[float, dict[str, str]]:
        """(when, who) somebody is first found slow; nobody, after so many looks."""
        for _ in range(looks):
            if found := self.look(**more):
                return self.now, found
        return self.now, {}


def test_ten_times_slower_is_found_after_a_second_of_slow_decoding():
    """Steps of 5/16 s. The third ends at 15/16: it is warm at the look of 1 s; three more are no second of slow
    decoding, four are, and the seventh ends at 35/16: seen at 2.25 s."""
    pool = Pool(a=Decoder(1 / 32), b=Decoder(1 / 32), c=Decoder(10 / 32))
    assert pool.until_found() == (
        2.25,
        {"c": "it decodes 10.0 times slower than the others (0.312 s a step, which would take 0.0312 s: median of 2)"},
    )


def test_one_whose_steps_are_longer_than_a_look_is_found_by_the_second_that_ends():
    """Steps of 0.8 s end at 0.8, 1.6, 2.4 (it is warm), 3.2, 4.0: seen at 3.25 and 4.0."""
    pool = Pool(a=Decoder(0.08), b=Decoder(0.08), c=Decoder(0.8))
    assert pool.until_found()[0] == 4.0


def test_a_step_that_does_not_end_is_found_at_the_second_look_after_two_seconds():
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.02))
    assert pool.until_found(looks=8) == (2.0, {})
    pool.workers["c"].step_s = 1000.0
    when, found = pool.until_found()
    assert when == 4.25 and found["c"].startswith("it decodes 112.5 times slower than the others (2.25 s a step")


def test_a_long_step_is_none_where_the_others_take_as_long():
    """10 s against 2.5: 4 times."""
    pool = Pool(a=Decoder(2.5), b=Decoder(2.5), c=Decoder(10.0))
    assert pool.until_found()[1] == {}
    pool = Pool(a=Decoder(2.5), b=Decoder(2.5), c=Decoder(20.0))
    assert pool.until_found()[1].keys() == {"c"}


@pytest.mark.parametrize("times", [1.0, 2.0, 3.0, 4.9])
def test_noise_below_the_factor_makes_nobody_slow(times):
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.02 * times))
    assert pool.until_found()[1] == {}


def test_the_factor_is_the_one_that_was_given():
    pool = Pool(factor=2.5, a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.06))
    assert pool.until_found()[1].keys() == {"c"}


def test_a_hiccup_that_is_shorter_than_a_second_is_none():
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.02))
    for _ in range(10):
        pool.workers["c"].step_s = 0.02
        assert pool.until_found(looks=4)[1] == {}
        pool.workers["c"].step_s = 0.3  # two looks, of which one sees the end of a step
        assert pool.until_found(looks=3)[1] == {}


def test_noise_that_makes_the_others_slow_too_now_and_then_only_delays_it():
    """Steps of 1/4 s: warm at 1 s, three after the first look. Then of every three looks one finds the others as slow
    and takes back a quarter of a second: 1, 0, 1, 2, 1, 2, 3, 2, 3, 4 of them at the tenth look."""
    pool = Pool(a=Decoder(1 / 32), b=Decoder(1 / 32), c=Decoder(1 / 4))
    found: dict[str, str] = {}
    while not found:
        noisy = pool.now >= 1.0 and round(pool.now / LOOK_S) % 3 == 2
        for name in "ab":
            pool.workers[name].step_s = 1 / 4 if noisy else 1 / 32
        found = pool.look()
    assert (pool.now, found.keys()) == (3.5, {"c"})


def test_standstills_that_come_now_and_then_make_nobody_slow():
    """5 s count half a second, of which the looks until the next take a quarter each."""
    pool = Pool(a=Decoder(1 / 32), b=Decoder(1 / 32), c=Decoder(1 / 32))
    for _ in range(5):
        assert pool.until_found(looks=8)[1] == {}
        c = pool.workers["c"]
        c.pace = dataclasses.replace(c.pace, steps=c.pace.steps + 1, seconds=c.pace.seconds + 5.0)
        assert pool.look() == {}


def test_a_pool_of_one_has_nobody_slow_nor_one_in_which_all_are():
    assert Pool(a=Decoder(5.0)).until_found()[1] == {}
    slowed = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.02))
    assert slowed.until_found(looks=20)[1] == {}
    for worker in slowed.workers.values():
        worker.step_s *= 20
    assert slowed.until_found()[1] == {}


def test_a_standstill_of_the_whole_machine_makes_nobody_slow():
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.02))
    pool.until_found(looks=10)
    for worker in pool.workers.values():  # 30 s in one step, told by whoever answers first
        worker.pace = dataclasses.replace(worker.pace, step_s=30.0)
    first = pool.workers["a"].pace
    assert pool.policy.look("a", first, ["b", "c"], pool.now + 30.0) is None
    pool.now += 30.0
    for worker in pool.workers.values():
        pace = worker.pace
        worker.pace = dataclasses.replace(pace, steps=pace.steps + 1, seconds=pace.seconds + 30.0, step_s=0.0)
    assert pool.until_found()[1] == {}


def test_of_two_slow_ones_among_four_both_are_found_and_of_three_none_is():
    """The median of (10, 1, 1) is 1, that of (10, 10, 1) is 10."""
    fast, slow = (lambda: Decoder(0.02)), (lambda: Decoder(0.2))
    assert Pool(a=fast(), b=fast(), c=slow(), d=slow()).until_found()[1].keys() == {"c", "d"}
    assert Pool(a=fast(), b=slow(), c=slow(), d=slow()).until_found()[1] == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Decoder(0.01, 1), Decoder(0.28, 28)),
        (Decoder(0.01, 1), Decoder(0.037, 28)),
        (Decoder(0.01, 1), Decoder(0.01, 28)),
    ],
    ids=["a token takes 0.01 s", "a step takes 0.009 s and each token 0.001", "a step takes 0.01 s"],
)
def test_how_many_sequences_one_has_makes_neither_it_nor_the_other_slow(one, other):
    assert Pool(a=one, b=other).until_found()[1] == {}


def test_with_other_sequences_one_is_found_by_what_they_would_take_the_others():
    """Steps of 16 tokens would take 0.04 s where those of 8 take 0.02: 0.4 s is 10 times that, 0.19 s is not 5."""
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.4, 16))
    assert "10.0 times slower than the others (0.4 s a step, which would take 0.04 s" in pool.until_found()[1]["c"]
    assert Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.19, 16)).until_found()[1] == {}


@pytest.mark.parametrize(("step_s", "found"), [(0.09, set()), (0.11, {"c"})])
def test_a_step_of_fewer_tokens_may_take_the_others_as_long_as_theirs(step_s, found):
    """0.02 s, though 1 token is an eighth of 8."""
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.02, 1))
    pool.until_found(looks=8)
    pool.workers["c"].step_s = step_s
    assert pool.until_found(idle=("a", "b"))[1].keys() == found


def test_it_is_compared_with_steps_of_about_its_own_size():
    """The others came down from 16 tokens to 1 within the second before; their steps of 16 took 0.04 s."""
    pool = Pool(a=Decoder(0.04, 16), b=Decoder(0.04, 16), c=Decoder(0.04, 16))
    pool.until_found(looks=8)
    pool.workers["c"].step_s = 0.4
    for name in "ab":
        pool.workers[name].step_s, pool.workers[name].tokens = 0.01, 1
    when, found = pool.until_found()
    assert found["c"].startswith("it decodes 10.0 times slower than the others (0.4 s a step, which would take 0.04 s")
    assert when <= 4.0, "before the others have forgotten what such a step takes"


def test_others_that_have_ended_their_part_are_remembered_for_a_minute():
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.02))
    pool.until_found(looks=8)
    pool.workers["c"].step_s = 0.2
    assert pool.until_found(idle=("a", "b"))[1].keys() == {"c"}
    later = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.02))
    later.until_found(looks=8)
    assert later.until_found(looks=240, idle=("a", "b", "c"))[1] == {}
    later.workers["c"].step_s = 0.2
    assert later.until_found(idle=("a", "b"))[1] == {}


def test_one_that_decodes_nothing_is_never_slow_whatever_it_did_before():
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.02))
    pool.until_found(looks=8)
    pool.workers["c"].step_s = 0.2
    assert pool.until_found(looks=3)[1] == {}, "0.6 s of slow decoding"
    assert pool.until_found(looks=100, idle=("c",))[1] == {}


def test_the_first_steps_of_one_that_has_just_begun_count_for_nothing():
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02))
    pool.until_found(looks=8)
    pool.workers["c"] = Decoder(4.0)  # its kernels are chosen: 12 s for three steps
    assert pool.until_found(looks=48)[1] == {}
    pool.workers["c"].step_s = 0.02
    assert pool.until_found()[1] == {}


def test_one_that_has_rested_begins_anew_and_is_warm():
    """The first look, of 32.5 s, is at where it stands: a step has just ended. Four more end 20/16 s later."""
    pool = Pool(a=Decoder(1 / 32), b=Decoder(1 / 32), c=Decoder(10 / 32))
    assert pool.until_found()[0] == 2.25
    pool.policy.begin_anew("c")
    pool.now += 30.0
    assert pool.until_found()[0] == 32.5 + 1.25


def test_a_prompt_that_is_read_makes_nobody_slow():
    """1,000 tokens in a step of 0.5 s, every fourth step; the others decode. 40 x 0.02 = 0.8 s would be right."""
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.14, 256))
    assert pool.until_found()[1] == {}


def test_a_long_prompt_half_read_makes_nobody_slow_before_its_first_token():
    """In pieces beside the decoding, steps of 0.2 s that make 8 tokens each; its 32,000 tokens are not counted yet."""
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.2))
    pool.workers["c"].pace = dataclasses.replace(pool.workers["c"].pace, unread=32_000, longest=32_000)
    assert pool.until_found(looks=40)[1] == {}


def test_a_step_under_way_that_reads_prompts_may_take_as_long_as_they_do():
    """12,800 tokens in one step: 1,600 x 0.02 = 32 s would be right, 5 times that are not."""
    pool = Pool(a=Decoder(0.02), b=Decoder(0.02), c=Decoder(0.02))
    pool.until_found(looks=8)
    pool.workers["c"].pace = dataclasses.replace(pool.workers["c"].pace, unread=12_792, longest=200)
    pool.workers["c"].step_s = 1000.0
    when, _ = pool.until_found(looks=4 * 1000)
    assert when == 2.0 + 160.0 + 2 * LOOK_S


def test_a_rest_is_twice_as_long_each_time_in_a_row_and_begins_anew_after_five_good_minutes():
    rests = Rests(30.0)
    assert rests.next_s("a", 10.0) == 30.0
    rests.back("a", 40.0)
    assert rests.next_s("a", 45.0) == 60.0
    rests.back("a", 105.0)
    assert (rests.next_s("a", 404.0), rests.next_s("b", 404.0)) == (120.0, 30.0)
    rests.back("a", 524.0)
    assert rests.next_s("a", 824.0) == 30.0


def test_no_rest_is_longer_than_ten_minutes():
    rests = Rests(30.0)
    found = []
    for n in range(7):
        found.append(rests.next_s("a", float(n)))
        rests.back("a", float(n))
    assert found == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
