"""From two holes to two proven links, and what can go wrong in between."""

from __future__ import annotations

import asyncio
import pathlib
from typing import TYPE_CHECKING

import pytest

from nat_traverse.errors import PeerGoneError
from nat_traverse.link.establish import (
    EXIT_MODES_DIFFER,
    ModesDifferError,
    Purpose,
    establish,
    spare_ports,
)
from nat_traverse.link.link import Link, NoAnswerError
from nat_traverse.model import Generation
from nat_traverse.punch.ports import FIRST_PORT
from nat_traverse.tunnel import secure
from nat_traverse.tunnel.keys import public_of
from nat_traverse.tunnel.proof import Means
from nat_traverse.tunnel.quic import SMALLEST_DATAGRAM
from nat_traverse.tunnel.refusals import (
    MeansDifferError,
    ProofError,
    PurposesDifferError,
    Refusal,
)
from nat_traverse.wire.hello import Mode
from support.ends import hole_to_original, run
from support.links import SECRET, links, tunnel_holes

if TYPE_CHECKING:
    from nat_traverse.punch.machine import Connected
    from nat_traverse.session import Hole

ONE_KEY, OTHER_KEY = b"\x01" * 32, b"\x02" * 32


def open_descriptors() -> set[str]:
    return {descriptor.name for descriptor in pathlib.Path("/proc/self/fd").iterdir()}


async def attempt(
    holes: tuple[Hole, Hole],
    means: tuple[Means, Means] = (SECRET, SECRET),
    purposes: tuple[Purpose, Purpose] = (Purpose.PROGRAM, Purpose.PROGRAM),
) -> list[Link | BaseException]:
    """Return what came of it on both sides, and leave nothing behind."""
    found = await asyncio.gather(
        *(establish(*each) for each in zip(holes, means, purposes, strict=True)),
        return_exceptions=True,
    )
    for each in found:
        if not isinstance(each, BaseException):
            each.abort()
    return list(found)


@pytest.mark.parametrize("means", ["secret", "keys", "neither"])
def test_both_sides_get_a_proven_link(means: str) -> None:
    async def main() -> None:
        both = {
            "secret": (SECRET, SECRET),
            "keys": (
                Means(None, ONE_KEY, (public_of(OTHER_KEY),)),
                Means(None, OTHER_KEY, (public_of(ONE_KEY),)),
            ),
            "neither": (Means(), Means()),
        }[means]
        async with tunnel_holes() as holes:
            found = await attempt(holes, both)
            outcomes = [each.proven.result() for each in found if isinstance(each, Link)]
            assert len(outcomes) == 2
            assert outcomes[0].code == outcomes[1].code
            assert (outcomes[0].code is not None) == (means == "neither")

    run(main())


@pytest.mark.parametrize("purpose", [each for each in Purpose if each is not Purpose.PROGRAM])
def test_other_purposes_are_refused_on_both_sides(purpose: Purpose) -> None:
    async def main() -> None:
        async with tunnel_holes() as holes:
            found = await attempt(holes, purposes=(Purpose.PROGRAM, purpose))
            assert all(isinstance(error, ProofError) for error in found)
            assert any(isinstance(error, PurposesDifferError) for error in found)

    run(main())


def test_a_failed_proof_is_known_on_both_sides_and_leaves_nothing_open() -> None:
    async def main() -> None:
        before = open_descriptors()
        async with tunnel_holes() as holes:
            found = await attempt(holes, (SECRET, Means(b"wrong")))
            refusals = [error.refusal for error in found if isinstance(error, ProofError)]
            assert refusals == [Refusal.WRONG_SECRET] * 2
            assert open_descriptors() == before

    run(main())


def test_means_that_differ() -> None:
    async def main() -> None:
        async with tunnel_holes() as holes:
            found = await attempt(holes, (SECRET, Means()))
            assert any(isinstance(error, MeansDifferError) for error in found)

    run(main())


class TestChecks:
    @pytest.mark.parametrize(("mode", "text"), [(Mode.PLAIN, "--plain"), (Mode.PORTS, "--handoff")])
    def test_a_peer_that_wants_the_path_for_something_else(self, mode: Mode, text: str) -> None:
        async def main() -> None:
            for modes in ((Mode.TUNNEL, mode), (mode, Mode.TUNNEL)):
                async with tunnel_holes(modes) as holes:
                    ours = next(hole for hole in holes if hole.handshake.mode is Mode.TUNNEL)
                    with pytest.raises(ModesDifferError, match=text) as caught:
                        await establish(ours, SECRET, Purpose.PROGRAM)
                    assert caught.value.exit_code == EXIT_MODES_DIFFER
                    assert ours.socket.fileno() < 0

        run(main())

    def test_a_peer_of_0_7(self) -> None:
        async def main() -> None:
            async with hole_to_original() as (hole, _):
                assert hole.connected.generation is Generation.LEGACY
                with pytest.raises(ModesDifferError, match=r"0\.7"):
                    await establish(hole, SECRET, Purpose.STREAM)
                assert hole.socket.fileno() < 0

        run(main())

    def test_a_path_that_is_too_narrow(self) -> None:
        async def main() -> None:
            async with tunnel_holes() as (one, other):
                size = SMALLEST_DATAGRAM - 1
                one.connected = replace_size(one, size)
                with pytest.raises(ModesDifferError, match=f"{size} bytes"):
                    await establish(one, SECRET, Purpose.STREAM)
                other.connected = replace_size(other, SMALLEST_DATAGRAM)

        run(main())

    def test_the_narrowest_path_will_do(self) -> None:
        async def main() -> None:
            async with tunnel_holes() as holes:
                for hole in holes:
                    hole.connected = replace_size(hole, SMALLEST_DATAGRAM)
                found = await attempt(holes)
                assert not any(isinstance(each, BaseException) for each in found)

        run(main())


def test_spare_ports_are_those_of_the_other_side_and_of_this_session() -> None:
    async def main() -> None:
        seen = set()
        for _ in range(3):
            async with links() as (one, other):
                ours, theirs = spare_ports(one), spare_ports(other)
                assert ours == theirs[::-1]
                assert all(FIRST_PORT <= port < 65_536 for port in ours)
                assert spare_ports(one) == ours
                one.abort()
                assert spare_ports(one) == ours  # it is then that they are wanted
                seen.add(ours)
        assert len(seen) == 3

    run(main())


@pytest.mark.parametrize(("purpose", "consent"), [(Purpose.VPN, 3.0), (Purpose.PROGRAM, 30.0)])
def test_how_long_the_peer_may_be_silent(purpose: Purpose, consent: float) -> None:
    async def main() -> None:
        async with links(purpose=purpose, consent=consent) as both:
            for link in both:
                assert link.tunnel.consent == consent
                assert link.proven.result().purpose == purpose

    run(main())


def replace_size(hole: Hole, size: int) -> Connected:
    return hole.connected._replace(datagram_size=size)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure, "ESTABLISH", 0.3)

    async def main() -> None:
        async with tunnel_holes() as (one, _):
            with pytest.raises(NoAnswerError, match="no encrypted channel"):
                await establish(one, SECRET, Purpose.PROGRAM)
            assert one.socket.fileno() < 0

    run(main())


class TestCancelling:
    @pytest.mark.parametrize("leaver", [0, 1])
    @pytest.mark.parametrize("after", [0.0, 0.001, 0.005, 0.01, 0.02, 0.04])
    def test_at_any_moment_tells_the_peer_at_once(self, leaver: int, after: float) -> None:
        async def main() -> None:
            before = open_descriptors()
            async with tunnel_holes() as holes:
                tasks = [
                    asyncio.ensure_future(establish(hole, SECRET, Purpose.PROGRAM))
                    for hole in holes
                ]
                await asyncio.sleep(after)
                was_done = tasks[leaver].done()
                tasks[leaver].cancel()
                async with asyncio.timeout(1.0):
                    found = await asyncio.gather(*tasks, return_exceptions=True)
                    stayed = found[1 - leaver]
                    if was_done:
                        for each in found:
                            assert not isinstance(each, BaseException)
                            each.abort()
                    elif isinstance(stayed, BaseException):
                        assert isinstance(stayed, PeerGoneError | ProofError)
                    else:
                        # It was through already, and learns of it on its link.
                        with pytest.raises(PeerGoneError):
                            await stayed.closed
                assert isinstance(found[leaver], asyncio.CancelledError) or was_done
            assert open_descriptors() == before

        run(main())

    def test_at_each_turn_of_the_event_loop(self) -> None:
        async def main() -> None:
            for turns in range(1, 24, 2):
                async with tunnel_holes() as holes:
                    tasks = [
                        asyncio.ensure_future(establish(hole, SECRET, Purpose.PROGRAM))
                        for hole in holes
                    ]
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    if tasks[0].done():
                        break
                    tasks[0].cancel()
                    async with asyncio.timeout(1.0):
                        stayed = (await asyncio.gather(*tasks, return_exceptions=True))[1]
                        if not isinstance(stayed, BaseException):
                            with pytest.raises(PeerGoneError):
                                await stayed.closed

        run(main())
