"""Who gets which ticket, worked out by hand; and how much may be admitted."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.types import SamplingSettings
from cluster.pool.admission import Admission, Backlog
from cluster.pool.dispatch import Dispatcher
from cluster.pool.members.member import FOLLOWS, Member, MemberState
from cluster.pool.members.ticket import Ticket

SAMPLING = SamplingSettings(max_tokens=16, samples_per_prompt=4)
"""A ticket of one prompt is 4 sequences and at most 64 tokens."""
numbers = itertools.count()


def ticket(groups: int = 1, **fields) -> Ticket:
    return Ticket(next(numbers), "prompts", tuple(range(groups)), SAMPLING, **fields)


def pool(*names: str, full: int = 8) -> Dispatcher:
    made = Dispatcher(full)
    for name in names:
        made.join(name)
    return made


def names(assigned) -> list[str]:
    return [name for name, _ in assigned]


def test_a_ticket_is_worth_what_it_may_still_make():
    whole = ticket(2)
    assert (whole.sequences, whole.tokens) == (8, 128)
    half = whole.handed_on("batch", 100)
    assert (half.tokens, half.carried, half.prefer) == (28, "batch", None)


def test_tickets_go_to_who_has_the_fewest_tokens_before_it():
    found = pool("a", "b")
    for _ in range(4):
        found.offer(ticket())
    assert names(found.assign()) == ["a", "b", "a", "b"]
    assert (found.tokens("a"), found.tokens("b")) == (128, 128)


def test_half_made_tickets_weigh_less_and_come_first():
    found = pool("a", "b", full=16)
    found.offer(ticket(3))
    found.offer(ticket().handed_on("batch", 60), first=True)
    assert names(found.assign()) == ["a", "b"]
    assert (found.tokens("a"), found.tokens("b")) == (4, 192)
    found.offer(ticket())
    assert names(found.assign()) == ["a"], "4 tokens are before it there, 192 at b"


def test_nobody_gets_more_sequences_than_its_limit_and_what_is_done_makes_room():
    found = pool("a")
    given = [ticket() for _ in range(3)]
    for one in given:
        found.offer(one)
    assert names(found.assign()) == ["a", "a"] and found.waiting == 1
    assert names(found.assign()) == []
    found.done("a", given[0])
    assert names(found.assign()) == ["a"] and found.waiting == 0


def test_a_ticket_larger_than_the_limit_goes_to_an_idle_member():
    found = pool("a", full=2)
    found.offer(ticket(5))
    assert names(found.assign()) == ["a"]


def test_a_preferred_member_gets_its_ticket_while_it_has_room():
    found = pool("a", "b", full=4)
    found.offer(ticket(prefer="b"))
    found.offer(ticket(prefer="b"))
    found.offer(ticket(prefer="gone"))
    assert names(found.assign()) == ["b", "a"] and found.waiting == 1


def test_who_leaves_gives_back_what_it_had_and_gets_no_more():
    found = pool("a", "b")
    mine = [ticket(prefer="a"), ticket(prefer="a")]
    for one in mine:
        found.offer(one)
    list(found.assign())
    assert found.leave("a") == mine and found.leave("a") == []
    found.done("a", mine[0])
    found.offer(ticket())
    assert names(found.assign()) == ["b"]


def test_pressure_halves_the_limit_and_ease_adds_one():
    found = pool("a", full=8)
    found.feel("a", 0.95)
    assert found.limit("a") == 4
    for _ in range(4):
        found.feel("a", 0.95)
    assert found.limit("a") == 1
    found.feel("a", 0.8)
    assert found.limit("a") == 1, "neither pressed nor easy"
    for _ in range(20):
        found.feel("a", 0.1)
    assert found.limit("a") == 8


@given(st.lists(st.integers(1, 4), min_size=1, max_size=60), st.integers(1, 6), st.randoms(use_true_random=False))
def test_every_ticket_is_given_out_once_whatever_order_they_end_in(sizes, members, random):
    found, held, given_out = pool(*(f"m{i}" for i in range(members))), [], []
    offered = [ticket(size) for size in sizes]
    for one in offered:
        found.offer(one)
    while len(given_out) < len(offered):
        now = list(found.assign())
        given_out += [one.number for _, one in now]
        held += now
        assert held, "with nothing under way there is room for at least one"
        found.done(*held.pop(random.randrange(len(held))))
    assert sorted(given_out) == [one.number for one in offered]
    for name, one in held:
        found.done(name, one)
    assert all(found.tokens(f"m{i}") == 0 for i in range(members))


def test_a_state_that_does_not_follow_is_a_bug():
    member = Member("a", handle=None)
    member.move(MemberState.HEALTHY)
    member.move(MemberState.DRAINING)
    with pytest.raises(ValueError, match="a is draining and cannot become healthy"):
        member.move(MemberState.HEALTHY)
    member.move(MemberState.RETIRED)
    assert member.gone and FOLLOWS[MemberState.RETIRED] == FOLLOWS[MemberState.DEAD] == frozenset()


# --- admission: B = 4, S = 1, the example of the module ---

FOUR = Admission(batch=4, max_staleness=1)


def test_capacity_is_a_batch_for_every_version_and_one_for_each_that_a_sample_may_be_old():
    assert FOUR.room(version=0, admitted=0, dropped=0) == 8
    assert FOUR.room(version=0, admitted=8, dropped=0) == 0
    assert FOUR.room(version=1, admitted=8, dropped=0) == 4
    assert FOUR.room(version=1, admitted=12, dropped=3) == 3, "what was dropped is replaced"
    assert Admission(4, 0).room(version=2, admitted=8, dropped=0) == 4, "synchronous: the next batch, nothing ahead"


def test_fewer_may_be_under_way_than_the_bound_allows_and_never_more():
    rule = Admission(batch=4, max_staleness=1, ahead=2)
    assert rule.room(version=0, admitted=0, dropped=0) == 6
    assert rule.room(version=1, admitted=6, dropped=0) == 4
    assert Admission(batch=4, max_staleness=1, ahead=99).room(version=0, admitted=0, dropped=0) == 8


def backlog(ended: dict[int, int], open_: dict[int, int], rule: Admission = FOUR) -> Backlog:
    """group: version that it was admitted at."""
    made = Backlog(rule)
    for group, version in (ended | open_).items():
        made.admit(group, version)
    for group in ended:
        made.end(group)
    return made


def test_a_batch_is_the_oldest_of_what_has_ended_and_waits_for_what_is_due():
    ended = {5: 0, 1: 0, 9: 1, 2: 0, 8: 1}
    first = backlog(ended, {0: 0})
    assert first.take(0, 4) == [1, 2, 5, 8] and (first.ended, first.open) == (1, 1)
    assert backlog(ended, {0: 0}).take(1, 4) is None, "group 0, of version 0, must be among them"
    assert backlog(ended | {0: 0}, {7: 1}).take(1, 4) == [0, 1, 2, 5]
    assert backlog({1: 0, 2: 0, 3: 0}, {}).take(0, 4) is None, "three are not a batch"


def test_a_step_waits_when_two_that_are_not_due_yet_could_not_both_be_in_time_later():
    """One a step, two versions old at most: 1 and 2, of version 0, need the steps at versions 1 and 2 both."""
    one = Admission(batch=1, max_staleness=2)
    assert backlog({3: 1}, {1: 0, 2: 0}, one).take(1, 1) is None
    assert backlog({1: 0, 3: 1}, {2: 0}, one).take(1, 1) == [1]


def test_what_is_dropped_is_waited_for_no_longer_and_what_is_late_is_given_out_apart():
    kept = backlog({1: 1, 2: 1, 3: 1, 4: 1}, {0: 0})
    assert kept.take(1, 4) is None
    kept.drop(0)
    assert kept.take(1, 4) == [1, 2, 3, 4]
    late = backlog({1: 0, 2: 0, 3: 2}, {})
    assert late.take_late(2) == [1, 2] and late.take_oldest(4) == [3] and late.ended == 0


@given(st.integers(1, 5), st.integers(0, 3), st.integers(1, 30), st.floats(0, 0.3), st.randoms(use_true_random=False))
def test_no_sample_is_older_than_the_bound_and_the_learner_never_starves(batch, bound, steps, drop, random):
    """Groups end in any order, some are dropped; every step finds a batch once all that is open has ended."""
    rule, version, dropped, made = Admission(batch, bound), 0, 0, 0
    pending, admitted_at, found = [], {}, Backlog(rule)
    while version < steps:
        for _ in range(rule.room(version=version, admitted=made, dropped=dropped)):
            found.admit(made, version)
            admitted_at[made] = version
            pending.append(made)
            made += 1
        chosen = found.take(version, batch)
        if chosen is None:
            assert pending, "nothing is under way and there is no batch: the learner would wait for ever"
            group = pending.pop(random.randrange(len(pending)))
            if random.random() < drop:
                dropped += 1
                found.drop(group)
            else:
                found.end(group)
            continue
        assert len(chosen) == batch
        assert all(version - admitted_at[group] <= bound for group in chosen)
        version += 1


def test_a_ticket_goes_back_to_who_failed_at_it_only_if_there_is_no_other():
    found = pool("a", "b")
    found.offer(ticket(avoid="a"))
    assert names(found.assign()) == ["b"], "though both have nothing before them and a comes first"
    found.offer(ticket())
    assert names(found.assign()) == ["a"], "who was passed over is still there for others"
    alone = pool("a")
    alone.offer(ticket(avoid="a"))
    assert names(alone.assign()) == ["a"]


def test_a_ticket_waits_for_no_other_than_whom_it_avoids():
    found = pool("a", "b", full=4)
    found.offer(ticket(prefer="b"))
    assert names(found.assign()) == ["b"]
    found.offer(ticket(avoid="a"))
    assert names(found.assign()) == [], "b is full: it waits for b"
    assert found.waiting == 1
