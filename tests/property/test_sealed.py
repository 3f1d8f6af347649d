"""Sealed datagrams and their keys under any sequence of losses, repetitions, renewals and pauses.

Whatever happens to the datagrams, and however long the frames about keys take:

- what is delivered was sent by the other side, and is delivered once;
- a datagram that nobody touched is delivered, unless it is too late for its key or the window;
- nothing of a stranger's changes anything but counts;
- as soon as the frames have arrived, each side seals what the other one opens.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from nat_traverse.tunnel.keying import (
    OVERLAP,
    REJECT_AFTER,
    RENEW_AFTER,
    RENEW_AFTER_MESSAGES,
    Keying,
)
from nat_traverse.tunnel.sealing import LIMIT, WINDOW, Cipher
from nat_traverse.wire.sealed import OVERHEAD
from property.footprint import bytes_held

SIZE = 12  # bytes of each content: all differ
BOTH = st.booleans()  # which side does it
CIPHERS = st.permutations(list(Cipher))
MEMORY = 600_000  # bytes of both sides: six windows of 64 KiB and what belongs to them


@dataclass
class End:
    """One side: what is on the way to it, and what has come out."""

    keying: Keying
    frames: deque[tuple[int, bytes]] = field(default_factory=deque)
    datagrams: dict[bytes, bytes] = field(default_factory=dict)  # and what is in each
    delivered: set[bytes] = field(default_factory=set)
    newest: dict[bytes, int] = field(default_factory=dict)  # counter that opened, of each key


class Sealed(RuleBasedStateMachine):
    """Two sides and the network between them."""

    @initialize(seed=st.integers(0, 2**32), ours=CIPHERS, theirs=CIPHERS)
    def begin(self, seed: int, ours: list[Cipher], theirs: list[Cipher]) -> None:
        chance = random.Random(seed)
        self.now = 1000.0
        self.serial = 0
        self.ends = [
            End(
                Keying(
                    is_client=is_client,
                    ciphers=ciphers,
                    random=chance.randbytes,
                    now=self.now,
                    binding=b"binding",
                )
            )
            for is_client, ciphers in ((True, ours), (False, theirs))
        ]
        self.collect()

    def collect(self) -> None:
        """Put the frames that are to be sent on their way."""
        for end, other in zip(self.ends, self.ends[::-1], strict=True):
            other.frames += end.keying.frames()

    def deliver(self, end: End, run: list[bytes]) -> list[bytes]:
        """Let datagrams arrive, and compare what comes out with what has to."""
        end.keying.handle_timer(self.now)
        known = end.keying.names
        found = end.keying.open_run(b"".join(run), SIZE + OVERHEAD, self.now)
        # The first one of a new key ends the key before the one that was in use.
        kept = set(known).intersection(end.keying.names)
        expected = []
        for datagram in run:
            content, index, counter = end.datagrams.get(datagram), datagram[4:8], datagram[8:16]
            number = int.from_bytes(counter, "little")
            if content is None or content in end.delivered or index not in known:
                continue
            newest = end.newest.get(index, -1)
            if number > newest - WINDOW and (index in kept or content in found):
                end.newest[index] = max(newest, number)
                end.delivered.add(content)
                expected.append(content)
        assert found == expected
        self.collect()
        return found

    @rule(side=BOTH, count=st.integers(1, 9))
    def send(self, side: bool, count: int) -> None:
        end, other = self.ends[side], self.ends[not side]
        sealer = end.keying.sealer
        if sealer is None:
            return
        train = [(self.serial + each).to_bytes(SIZE, "big") for each in range(count)]
        self.serial += count
        run = sealer.seal(train)
        size = SIZE + OVERHEAD
        datagrams = [run[at : at + size] for at in range(0, len(run), size)]
        if datagrams:  # and the key was not worn out
            other.datagrams |= dict(zip(datagrams, train, strict=True))

    @rule(side=BOTH, places=st.lists(st.integers(0, 2**16), min_size=1, max_size=12))
    def arrive_somehow(self, side: bool, places: list[int]) -> None:
        """Any datagrams of before, in any order, also repeatedly."""
        end = self.ends[side]
        if end.datagrams:
            datagrams = list(end.datagrams)
            self.deliver(end, [datagrams[place % len(datagrams)] for place in places])

    @rule(side=BOTH, count=st.integers(1, 12))
    def arrive_in_order(self, side: bool, count: int) -> None:
        """The last datagrams, as they were sent."""
        end = self.ends[side]
        self.deliver(end, list(end.datagrams)[-count:])

    @rule(
        side=BOTH,
        place=st.integers(0, 2**16),
        changes=st.lists(
            st.tuples(st.integers(0, SIZE + OVERHEAD - 1), st.integers(1, 255)),
            min_size=1,
            max_size=3,
            unique_by=lambda change: change[0],
        ),
    )
    def forge(self, side: bool, place: int, changes: list[tuple[int, int]]) -> None:
        """A datagram that somebody has changed, alone and between two that nobody has."""
        end = self.ends[side]
        if not end.datagrams:
            return
        genuine = list(end.datagrams)[place % len(end.datagrams)]
        forged = bytearray(genuine)
        for at, change in changes:
            forged[at] ^= change
        end.keying.handle_timer(self.now)
        self.collect()
        before = self.state(end)
        assert self.deliver(end, [bytes(forged)]) == []
        assert self.state(end) == before
        self.deliver(end, [genuine, bytes(forged), genuine])

    def state(self, end: End) -> tuple[object, ...]:
        keying = end.keying
        return keying.names, keying.sealer, keying.get_timer(), keying.opened, len(end.frames)

    @rule(side=BOTH, count=st.integers(1, 3))
    def hear_frames(self, side: bool, count: int) -> None:
        """Frames arrive late, and in order."""
        end = self.ends[side]
        for _ in range(min(count, len(end.frames))):
            end.keying.receive_frame(*end.frames.popleft(), self.now)
            self.collect()

    @rule(pause=st.sampled_from((0.01, 0.5, 2.0, 10.0, OVERLAP, RENEW_AFTER, REJECT_AFTER, 1e5)))
    def wait(self, pause: float) -> None:
        self.now += pause

    @rule(side=BOTH)
    def timer(self, side: bool) -> None:
        self.ends[side].keying.handle_timer(self.now)
        self.collect()

    @rule(side=BOTH, counter=st.sampled_from((RENEW_AFTER_MESSAGES, LIMIT - 5)))
    def wear(self, side: bool, counter: int) -> None:
        sealer = self.ends[side].keying.sealer
        if sealer is not None:
            sealer.counter = max(sealer.counter, counter)

    def teardown(self) -> None:
        """Let all arrive, in a session that lives on for a while: both sides agree again."""
        if not hasattr(self, "ends"):
            return
        for _ in range(12):
            self.now += 1.0
            for end in self.ends:
                end.keying.handle_timer(self.now)
                self.collect()
                while end.frames:
                    end.keying.receive_frame(*end.frames.popleft(), self.now)
                    self.collect()
        for side in (False, True):
            end = self.ends[side]
            end.datagrams.clear()
            self.send(not side, 3)
            assert len(end.datagrams) == 3
            assert self.deliver(end, list(end.datagrams)) == list(end.datagrams.values())
        assert sum(bytes_held(end.keying) for end in self.ends) < MEMORY


TestSealed = Sealed.TestCase
TestSealed.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
