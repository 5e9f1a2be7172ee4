"""Who gets which ticket: least tokens in flight first, within a limit of sequences that follows the cache's pressure.

In: tickets, members that come and go, tickets that end, pressures. Out: assignments. Pure: no clock, no Ray; the same
code serves 1 worker and 1,024 (an assignment costs the logarithm of their number). Example: limits 8 and 8, loads 100
and 40 tokens, a ticket of 4 sequences and 64 tokens goes to the second, which then has 104. Left out: doing it
(core.py), which prompts become tickets (admission.py).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.pool.members.ticket import Ticket

PRESSED, EASY = 0.90, 0.70
"""Shares of a worker's cache: above the first its limit is halved, below the second it grows."""


@dataclass(slots=True)
class _Load:
    """Of one member. limit: sequences it may have at once. stamp: entries of the heap with another are stale."""

    limit: int
    tokens: int = 0
    sequences: int = 0
    stamp: int = 0
    tickets: dict[int, Ticket] = field(default_factory=dict)

    def has_room(self, ticket: Ticket) -> bool:
        # An idle member takes any ticket: one that is larger than the limit would otherwise wait for ever.
        return not self.tickets or self.sequences + ticket.sequences <= self.limit


class Dispatcher:
    """full: sequences that an engine can run at once, where every member's limit begins and ends."""

    def __init__(self, full: int) -> None:
        self._full = full
        self._loads: dict[str, _Load] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._queue: deque[Ticket] = deque()
        self._stamp = 0

    @property
    def waiting(self) -> int:
        """Tickets that nobody has yet."""
        return len(self._queue)

    def join(self, member: str) -> None:
        self._loads[member] = _Load(self._full)
        self._push(member)

    def leave(self, member: str) -> list[Ticket]:
        """No more for this member; the tickets that it has not ended."""
        load = self._loads.pop(member, None)
        return [] if load is None else list(load.tickets.values())

    def offer(self, ticket: Ticket, first: bool = False) -> None:
        """Queue a ticket; first: before the others, as one that was handed on, whose samples are half made."""
        if first:
            self._queue.appendleft(ticket)
        else:
            self._queue.append(ticket)

    def clear(self) -> None:
        """Forget the tickets that nobody has yet."""
        self._queue.clear()

    def assign(self) -> Iterator[tuple[str, Ticket]]:
        """Give out what there is room for, in the queue's order: a large ticket is not overtaken by small ones."""
        while self._queue and (member := self._choose(self._queue[0])) is not None:
            ticket = self._queue.popleft()
            load = self._loads[member]
            load.tickets[ticket.number] = ticket
            load.tokens += ticket.tokens
            load.sequences += ticket.sequences
            self._push(member)
            yield member, ticket

    def done(self, member: str, ticket: Ticket) -> None:
        """The member has this ticket no longer. One that left before is forgotten already."""
        load = self._loads.get(member)
        if load is None or load.tickets.pop(ticket.number, None) is None:
            return
        load.tokens -= ticket.tokens
        load.sequences -= ticket.sequences
        self._push(member)

    def feel(self, member: str, pressure: float) -> None:
        """Additive increase, multiplicative decrease (Chiu and Jain 1989) of the member's limit."""
        load = self._loads.get(member)
        if load is None:
            return
        if pressure > PRESSED:
            load.limit = max(1, load.limit // 2)
        elif pressure < EASY and load.limit < self._full:
            load.limit += 1
        self._push(member)

    def limit(self, member: str) -> int:
        return self._loads[member].limit

    def tokens(self, member: str) -> int:
        """Tokens in flight at the member, at most."""
        return self._loads[member].tokens

    def _choose(self, ticket: Ticket) -> str | None:
        preferred = self._loads.get(ticket.prefer) if ticket.prefer else None
        if preferred is not None and preferred.has_room(ticket):
            return ticket.prefer
        avoided: tuple[int, int, str] | None = None
        chosen: str | None = None
        while self._heap and chosen is None:
            entry = heapq.heappop(self._heap)
            _, stamp, member = entry
            load = self._loads.get(member)
            # A member without room comes back when its load changes: looking at all full ones each time would make the
            # driver's cost grow with the pool.
            if load is None or load.stamp != stamp or not load.has_room(ticket):
                continue
            if member == ticket.avoid and len(self._loads) > 1 and avoided is None:
                avoided = entry
            else:
                chosen = member
        if avoided is not None:
            heapq.heappush(self._heap, avoided)
        return chosen

    def _push(self, member: str) -> None:
        """Its present load is the one that counts; entries of earlier loads are stale and swept now and then."""
        self._stamp += 1
        load = self._loads[member]
        load.stamp = self._stamp
        heapq.heappush(self._heap, (load.tokens, self._stamp, member))
        if len(self._heap) > 4 * len(self._loads) + 64:
            self._heap = [(load.tokens, load.stamp, name) for name, load in self._loads.items()]
            heapq.heapify(self._heap)
