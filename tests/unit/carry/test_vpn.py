"""Two ends of a VPN over loopback links, with devices that the test holds the other end of."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING, TypeVar

import pytest

from nat_traverse.carry import vpn as vpn_module
from nat_traverse.carry import vpn_device, vpn_session
from nat_traverse.carry.addressing import Plan, make_plan
from nat_traverse.carry.vpn import Vpn
from nat_traverse.carry.vpn_events import VpnDropped, VpnResized, VpnUp
from nat_traverse.errors import (
    DeniedError,
    DeviceError,
    LocalNetworkError,
    LocalProtocolError,
    NotAgreedError,
    PeerGoneError,
    UsageError,
)
from nat_traverse.link.establish import Purpose
from nat_traverse.model import Endpoint, ErrorKind, NetworkError
from nat_traverse.net.errqueue import QueuedError
from nat_traverse.net.tun import MAX_FRAME, Offload
from nat_traverse.tunnel import keying, sealing
from nat_traverse.tunnel.sealing import Cipher
from nat_traverse.wire.control import Frame
from nat_traverse.wire.sealed import OVERHEAD, PREFIX
from nat_traverse.wire.vpn import Terms, encode_terms
from support.ends import run
from support.links import crowd, links
from support.packets import ADDRESSES, Headers, finish, ipv4, partial, tcp, udp, verify, whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet
    from typing import Any

    from nat_traverse.carry.addressing import Address
    from nat_traverse.carry.vpn_events import VpnEvent
    from nat_traverse.carry.vpn_session import VpnSession
    from nat_traverse.link.link import Link

_T = TypeVar("_T")

LEFT = make_plan(addresses=["10.77.0.1/24", "fd77::1/64"])
RIGHT = make_plan(addresses=["10.77.0.2/24", "fd77::2/64"])
OUTER = ip_address("127.0.0.1")  # the peer, as the link sees it
OTHER, INSIDE = ip_address("127.0.0.9"), ip_address("10.77.0.1")
# All of IPv4 through the right end.
ALL = make_plan(addresses=["10.77.0.1/24"], routes=["0.0.0.0/0"])
OFFERED = make_plan(addresses=["10.77.0.2/24"], announced=["0.0.0.0/0"])
PART = 5  # bytes that a part is larger than what is in it

# What a device holds while it is not read; more than any test puts into it at a time.
ROOM = 4 * 1024 * 1024


class FakeTun:
    """The program's side of a device: each packet of a pair of sockets is a frame."""

    offload = Offload.USO4
    name, index = "nat0", 7

    def __init__(self, _name: str = "nat0") -> None:
        self.inside, self.outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (self.inside, self.outside):
            each.setblocking(False)
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                each.setsockopt(socket.SOL_SOCKET, option, ROOM)
        tuns.append(self)
        self.reads = 0
        self.refused = 0
        self.error: DeviceError | None = None

    def fileno(self) -> int:
        return self.inside.fileno()

    def read_into(self, buffer: memoryview) -> int | None:
        assert len(buffer) == MAX_FRAME
        if self.error is not None:
            raise self.error
        self.reads += 1
        with suppress(BlockingIOError):
            return self.inside.recv_into(buffer)
        return None

    def write(self, buffers: Sequence[bytes]) -> bool:
        self.inside.sendmsg(buffers)
        return True

    def close(self) -> None:
        """Leave it open: a session that is about to end still asks for its descriptor."""


tuns: list[FakeTun] = []


class FakeDevice:
    """A device that notes what it was told."""

    name = "nat0"

    def __init__(self, plan: Plan, keep: AbstractSet[str]) -> None:
        self.plan = plan
        self.keep = keep
        self.tun = FakeTun()
        self.mtu = 0
        self.configured: list[tuple[int, Address]] = []
        self.around: list[list[Address]] = []
        self.expected: list[list[Address]] = []
        self.error: DeviceError | None = None
        self.closed = 0
        made.append(self)

    def expect(self, outers: Iterable[Address]) -> None:
        self.expected.append(list(outers))

    def configure(self, mtu: int, outer: Address) -> None:
        if self.error is not None:
            raise self.error
        self.mtu = mtu
        self.configured.append((mtu, outer))

    def go_around(self, outers: Iterable[Address]) -> None:
        self.around.append(list(outers))
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1

    def read_packets(self) -> list[bytes]:
        """Return what was written to it since the last time, as packets on a wire."""
        return read_packets(self.tun)


def read_packets(tun: FakeTun) -> list[bytes]:
    """Return what was written to a device since the last time, as packets on a wire."""
    found = []
    with suppress(BlockingIOError):
        while True:
            found += finish(tun.outside.recv(MAX_FRAME))
    return found


made: list[FakeDevice] = []


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made.clear()
    tuns.clear()
    monkeypatch.setattr(vpn_module, "VpnDevice", FakeDevice)
    yield
    for tun in tuns:
        tun.inside.close()
        tun.outside.close()


class FakeKernel:
    """A kernel that does as it is told; it notes each MTU."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None

    def set_mtu(self, _index: int, mtu: int) -> None:
        mtus.append(mtu)


mtus: list[int] = []


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the real VpnDevice, between a device and a kernel that are none."""
    mtus.clear()
    monkeypatch.setattr(vpn_module, "VpnDevice", vpn_device.VpnDevice)
    monkeypatch.setattr(vpn_device, "Tun", FakeTun)
    monkeypatch.setattr(vpn_device, "Kernel", FakeKernel)


class End:
    """One end of a VPN."""

    def __init__(self, plan: Plan) -> None:
        self.events: list[VpnEvent] = []
        self.vpn = Vpn(plan, self._observe)
        self.changed = asyncio.Event()
        self.device: FakeDevice = self.vpn.open()  # type: ignore[assignment]
        self.task: asyncio.Task[None]
        self.link: Link

    def use(self, link: Link) -> None:
        self.link = link
        self.task = asyncio.ensure_future(self.vpn.use(link))

    def say_too_big(self, mtu: int) -> None:
        """Have a router say, or somebody who plays one, that the path takes so many bytes."""
        sock = self.link._sockets[self.link.tunnel.path.socket]
        error = NetworkError(ErrorKind.TOO_BIG, errno.EMSGSIZE, "192.0.2.1", mtu=mtu)
        sock._refusals.append(QueuedError(self.link.peer, error, b""))
        self.link._guarded(self.link._read, self.link.tunnel.path.socket)

    def all(self, kind: type[_T]) -> list[_T]:
        return [event for event in self.events if isinstance(event, kind)]

    async def up(self, number: int = 1) -> None:
        """Wait until packets pass, for the so-manieth time."""
        while len(self.all(VpnUp)) < number:
            await asyncio.wait(
                {self.task, asyncio.ensure_future(self._change())}, return_when=FIRST
            )
            if self.task.done():
                self.task.result()

    async def _change(self) -> None:
        self.changed.clear()
        await self.changed.wait()

    async def ended(self) -> BaseException | None:
        """Wait until it is over, and return why."""
        await asyncio.wait({self.task})
        return self.task.exception()

    def send(self, *frames: bytes) -> None:
        """Have the kernel send packets through the device."""
        for frame in frames:
            self.device.tun.outside.send(frame)

    async def packets(self, number: int) -> list[bytes]:
        """Wait for so many packets."""
        found: list[bytes] = []
        while len(found) < number:
            await asyncio.sleep(0.002)
            found += read_packets(self.device.tun)
        return found

    @property
    def session(self) -> VpnSession:
        assert self.vpn._session is not None
        return self.vpn._session

    def _observe(self, event: VpnEvent) -> None:
        self.events.append(event)
        self.changed.set()


FIRST = asyncio.FIRST_COMPLETED


@asynccontextmanager
async def ends(left: Plan = LEFT, right: Plan = RIGHT) -> AsyncIterator[tuple[End, End]]:
    """Two ends on a link; the left one is the client."""
    async with links(purpose=Purpose.VPN) as (one, other):
        both = End(left), End(right)
        for end, link in zip(both, (one, other), strict=True):
            end.use(link)
        try:
            yield both
        finally:
            for end in both:
                end.link.abort()
                end.vpn.close()
            await asyncio.gather(*(end.task for end in both), return_exceptions=True)


@asynccontextmanager
async def up(left: Plan = LEFT, right: Plan = RIGHT) -> AsyncIterator[tuple[End, End]]:
    """The same, when both are up."""
    async with ends(left, right) as both:
        for end in both:
            await end.up()
        yield both


def numbered(number: int, size: int = 100) -> bytes:
    """Return the packet of UDP with this number, from the left end."""
    return udp(number.to_bytes(4, "big") + bytes(size))


def numbers(packets: Sequence[bytes]) -> list[int]:
    return [int.from_bytes(each[28:32], "big") for each in packets]


def backwards(payload: bytes) -> bytes:
    """Return a packet from the right end to the left one."""
    return ipv4(200, payload, source=ADDRESSES[4][1], destination=ADDRESSES[4][0])


# -- packets --------------------------------------------------------------------------------------


class TestPackets:
    def test_pass_both_ways_in_both_versions(self) -> None:
        async def main() -> None:
            async with up() as (left, right):
                sent = [tcp(b"four", version=4), tcp(b"six", version=6), udp(b"")]
                left.send(*map(whole, sent))
                assert await right.packets(3) == sent
                right.send(whole(backwards(b"back")))
                assert await left.packets(1) == [backwards(b"back")]
                assert left.vpn.dropped == right.vpn.dropped == {}

        run(main())

    @pytest.mark.parametrize("version", [4, 6])
    def test_super_packets_come_as_what_they_stand_for(self, version: int) -> None:
        async def main() -> None:
            async with up() as (left, right):
                payload = bytes(range(256)) * 200
                frame = partial(tcp(payload, version=version), 1200)
                left.send(frame, whole(udp(b"behind it")), frame)
                expected = [*finish(frame), udp(b"behind it"), *finish(frame)]
                found = await right.packets(len(expected))
                for packet in found:
                    verify(packet)
                assert found == expected

        run(main())

    def test_of_the_largest_size_that_the_device_says(self) -> None:
        async def main() -> None:
            async with up() as (left, right):
                largest = left.device.mtu
                assert left.device.configured == [(largest, OUTER)]
                assert largest == left.link.connected.datagram_size - OVERHEAD - PART
                left.send(whole(udp(bytes(largest - 28))), partial(tcp(bytes(9000)), largest - 40))
                found = await right.packets(
                    1 + len(finish(partial(tcp(bytes(9000)), largest - 40)))
                )
                assert len(found[0]) == max(map(len, found)) == largest
                assert left.vpn.dropped == {}

        run(main())

    @pytest.mark.parametrize("version", [4, 6])
    def test_too_large_for_the_path_are_answered_by_icmp(self, version: int) -> None:
        async def main() -> None:
            async with up() as (left, _):
                packet = udp(bytes(2000), version=version)
                left.send(whole(packet))
                answer = (await left.packets(1))[0]
                headers = Headers(version, 0, 20 if version == 4 else 40, 0, b"")
                message = answer[headers.start :]
                # The kernel takes nothing from outside that claims to come from itself.
                place = slice(12, 20) if version == 4 else slice(8, 40)
                here, there = ADDRESSES[version]
                assert answer[place] == there + here
                if version == 4:
                    assert (answer[9], message[:2]) == (1, b"\x03\x04")  # RFC 792, RFC 1191
                    assert int.from_bytes(message[6:8], "big") == left.device.mtu
                else:
                    assert (answer[6], message[:2]) == (58, b"\x02\x00")  # RFC 4443
                    assert int.from_bytes(message[4:8], "big") == left.device.mtu
                assert message[8:48] == packet[:40]
                assert left.vpn.dropped == {"too large": 1}

        run(main())

    def test_none_is_lost_while_keys_are_renewed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(keying, "RENEW_AFTER", 0.02)
        monkeypatch.setattr(keying, "PACE", 0.001)

        async def main() -> None:
            async with up() as (left, right):
                found: list[int] = []
                number = 0
                while left.session._keying._settled < 4:
                    left.send(whole(numbered(number)))
                    right.send(whole(backwards(b"%d" % number)))
                    number += 1
                    await asyncio.sleep(0.002)
                    found += numbers(right.device.read_packets())
                found += numbers(await right.packets(number - len(found)))
                assert found == list(range(number))
                back = await left.packets(number)
                assert back == [backwards(b"%d" % each) for each in range(number)]
                assert left.vpn.dropped == right.vpn.dropped == {}
                assert len(right.session.names) >= 1

        run(main())

    @pytest.mark.parametrize("has", [(True, True), (True, False), (False, False)])
    def test_the_cipher_is_one_that_suits_both(
        self, has: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = iter(has)
        monkeypatch.setattr(vpn_session, "has_aes", lambda: next(answers))
        chosen: list[Cipher] = []

        def sealer(key: bytes, index: bytes, cipher: Cipher) -> sealing.Sealer:
            chosen.append(cipher)
            return sealing.Sealer(key, index, cipher)

        monkeypatch.setattr(keying, "Sealer", sealer)

        async def main() -> None:
            async with up() as (left, right):
                left.send(whole(numbered(1)))
                assert numbers(await right.packets(1)) == [1]
            best = Cipher.AES_256_GCM if all(has) else Cipher.CHACHA20_POLY1305
            assert chosen == [best, best]

        run(main())


class TestRoom:
    """A socket that is full."""

    def test_makes_the_device_wait_and_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def main() -> None:
            async with up() as (left, right):
                crowd(monkeypatch)
                waits: list[bool] = []
                read = left.session._read_device

                def noted(*, wanted: bool) -> None:
                    waits.append(wanted)
                    read(wanted=wanted)

                monkeypatch.setattr(left.session, "_read_device", noted)
                left.send(*(whole(numbered(each, 100 + each % 7)) for each in range(150)))
                assert numbers(await right.packets(150)) == list(range(150))
                assert {True, False} == set(waits)
                assert not left.session._unsent
                assert left.vpn.dropped == right.vpn.dropped == {}

        run(main())

    def test_is_not_taken_from_the_device_before_it_is_there(self) -> None:
        async def main() -> None:
            async with up() as (left, right):
                sock = left.link._sockets[left.link.tunnel.path.socket]
                left.link._block(sock)
                left.link.loop.remove_writer(sock.fileno())  # it stays full
                left.send(*(whole(numbered(each, 1000)) for each in range(100)))
                await asyncio.sleep(0.05)
                reads = left.device.tun.reads
                assert 0 < reads <= 100  # one batch
                left.send(whole(numbered(100)))
                await asyncio.sleep(0.05)
                assert left.device.tun.reads == reads
                left.link._guarded(left.link._unblock, sock)
                assert numbers(await right.packets(101)) == list(range(101))

        run(main())


# -- agreeing -------------------------------------------------------------------------------------


class TestAgreeing:
    def test_is_told_when_packets_pass(self) -> None:
        async def main() -> None:
            left = make_plan(addresses=["10.77.0.1/24"], routes=["192.168.7.0/24"])
            right = make_plan(addresses=["10.77.0.2/24"], announced=["192.168.0.0/16"])
            async with up(left, right) as both:
                mtu = both[0].device.mtu
                assert both[0].events == [
                    VpnUp("nat0", mtu, ("10.77.0.1/24",), ("10.77.0.2",), ("192.168.7.0/24",))
                ]
                assert both[1].events == [VpnUp("nat0", mtu, ("10.77.0.2/24",), ("10.77.0.1",), ())]
                # A host behind the right end speaks to the left one, and no other does.
                behind, other = bytes([192, 168, 7, 9]), bytes([192, 168, 8, 9])
                for source in (other, behind):
                    packet = ipv4(200, b"x", source=source, destination=ADDRESSES[4][0])
                    both[1].send(whole(packet))
                assert await both[0].packets(1) == [packet]
                assert both[0].vpn.dropped == {"foreign": 1}

        run(main())

    def test_nothing_is_read_before_both_have_agreed(self) -> None:
        async def main() -> None:
            async with links(purpose=Purpose.VPN) as (one, other):
                left, right = End(LEFT), End(RIGHT)
                left.use(one)
                left.send(*(whole(numbered(each)) for each in range(3)))
                await asyncio.sleep(0.05)
                assert (left.device.tun.reads, left.device.configured) == (0, [])
                right.use(other)
                await left.up()
                assert numbers(await right.packets(3)) == [0, 1, 2]  # they have waited
                for end in (left, right):
                    end.link.abort()
                    await end.ended()

        run(main())

    def test_the_smaller_of_two_limits_is_for_both(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def main() -> None:
            async with links(purpose=Purpose.VPN) as (one, other):
                left, right = End(LEFT), End(RIGHT)
                smaller = one.connected._replace(datagram_size=1320)
                monkeypatch.setattr(one._hole, "connected", smaller)
                left.use(one)
                right.use(other)
                for end in (left, right):
                    await end.up()
                    assert end.device.mtu == 1320 - OVERHEAD - PART
                    end.link.abort()
                for end in (left, right):
                    await end.ended()

        run(main())

    def test_the_same_address_is_refused_on_both_sides(self) -> None:
        async def main() -> None:
            async with ends(LEFT, LEFT) as both:
                for end in both:
                    error = await end.ended()
                    assert isinstance(error, NotAgreedError)
                    assert "Both sides have the address 10.77.0.1." in str(error)
                    assert error.exit_code == 9
                    assert end.events == []
                    assert end.device.configured == []

        run(main())

    @pytest.mark.parametrize("refusing", [0, 1])
    def test_a_network_that_is_not_announced_is_refused_and_told_there(self, refusing: int) -> None:
        async def main() -> None:
            plans = [
                make_plan(addresses=["10.77.0.1/24"], announced=["10.9.0.0/16"]),
                make_plan(addresses=["10.77.0.2/24"], announced=["10.9.0.0/16"]),
            ]
            plans[refusing] = make_plan(
                addresses=[f"10.77.0.{refusing + 1}/24"], routes=["192.168.7.0/24"]
            )
            async with ends(*plans) as both:
                here, there = await both[refusing].ended(), await both[1 - refusing].ended()
                assert isinstance(here, NotAgreedError)
                assert str(here).startswith("--route 192.168.7.0/24: the other side has not")
                assert isinstance(there, NotAgreedError)
                assert str(there) == f"The other side says: {here}"
                assert both[refusing].device.configured == []
                assert both[refusing].all(VpnUp) == []

        run(main())

    def test_a_peer_that_says_nothing_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(vpn_session, "_PATIENCE", 0.1)

        async def main() -> None:
            async with links(purpose=Purpose.VPN) as (one, _):
                end = End(LEFT)
                end.use(one)
                error = await end.ended()
                assert isinstance(error, PeerGoneError)
                assert error.errno == errno.ETIMEDOUT
                assert "within 0.1 seconds" in str(error)
                assert one.is_over

        run(main())

    def test_patience_is_not_for_what_is_agreed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(vpn_session, "_PATIENCE", 0.5)

        async def main() -> None:
            async with up() as (left, right):
                await asyncio.sleep(0.6)
                assert not left.task.done()
                assert not right.task.done()

        run(main())

    @pytest.mark.parametrize(
        ("kind", "value", "text"),
        [
            (Frame.NETWORK, encode_terms(Terms(RIGHT.addresses, (), 1300)), "a second time"),
            (Frame.NETWORK, b"", "terms of 0 bytes"),
            (Frame.KEY_OFFER, b"x", ""),
            (Frame.KEY_CONFIRM, bytes(4), ""),
            (Frame.KEY_WANTED, bytes(4), ""),
        ],
    )
    @pytest.mark.parametrize("liar", [0, 1])
    def test_frames_that_can_not_be_end_it(
        self, liar: int, kind: int, value: bytes, text: str
    ) -> None:
        if (liar, kind) == (1, Frame.KEY_WANTED):
            value = b"\0\0\0\x63"  # a key that there is not
        if (liar, kind) == (0, Frame.NETWORK) and value:
            value = encode_terms(Terms(LEFT.addresses, (), 1300))

        async def main() -> None:
            async with up() as both:
                both[liar].link.tunnel.send_frame(kind, value)
                both[liar].link.wake()
                for end in (both[1 - liar], both[liar]):
                    error = await end.ended()
                    assert isinstance(error, PeerGoneError)
                    assert error.errno == errno.EPROTO
                    assert text in str(error)
                    assert "different versions" in str(error)

        run(main())

    def test_frames_of_a_later_version_are_skipped(self) -> None:
        async def main() -> None:
            async with up() as both:
                both[0].link.tunnel.send_frame(0x30, b"of a later version")
                both[0].link.wake()
                both[0].send(whole(udp(b"and a packet behind it")))
                assert await both[1].packets(1) == [udp(b"and a packet behind it")]

        run(main())

    @pytest.mark.parametrize("largest", [0, 599])
    def test_a_peer_that_takes_next_to_nothing_ends_it(self, largest: int) -> None:
        async def main() -> None:
            async with links(purpose=Purpose.VPN) as (one, other):
                end = End(LEFT)
                end.use(one)
                terms = Terms(RIGHT.addresses, (), largest)
                other.tunnel.send_frame(Frame.NETWORK, encode_terms(terms))
                other.wake()
                error = await end.ended()
                assert isinstance(error, PeerGoneError)
                assert error.errno == errno.EPROTO
                assert end.device.configured == []

        run(main())

    def test_more_networks_than_can_be_announced(self) -> None:
        async def main() -> None:
            networks = tuple(ip_network(f"10.{each}.0.0/16") for each in range(256))
            plan = Plan((ip_interface("10.77.0.1/24"),), announced=networks)
            async with links(purpose=Purpose.VPN) as (one, _):
                end = End(plan)
                end.use(one)
                error = await end.ended()
                assert isinstance(error, LocalProtocolError)
                assert "256 networks do not fit" in str(error)
                assert one.sealed_user is None

        run(main())


# -- what does not pass ---------------------------------------------------------------------------


class TestDropped:
    def test_is_counted_and_told_at_the_end(self) -> None:
        async def main() -> None:
            async with up() as (left, right):
                stranger = ipv4(200, b"x", source=bytes([10, 77, 0, 3]))
                elsewhere = ipv4(200, b"x", destination=bytes([10, 77, 0, 3]))
                left.send(whole(stranger), whole(elsewhere), whole(b"\xff" * 40), bytes(10))
                left.send(whole(udp(bytes(3000))), whole(numbered(1)))
                assert numbers(await right.packets(1)) == [1]
                assert right.vpn.dropped == {"foreign": 2, "malformed": 1}
                assert left.vpn.dropped == {"unusable": 1, "too large": 1}
                left.link.abort()
                for end in (left, right):
                    await end.ended()
                assert right.events[1:] == [VpnDropped({"foreign": 2, "malformed": 1})]
                assert left.events[1:] == [VpnDropped({"too large": 1, "unusable": 1})]
                assert left.vpn.dropped == {"too large": 1, "unusable": 1}

        run(main())

    def test_nothing_is_told_of_nothing(self) -> None:
        async def main() -> None:
            async with up() as (left, right):
                left.link.abort()
                for end in (left, right):
                    await end.ended()
                    assert end.all(VpnDropped) == []

        run(main())

    def test_forged_and_replayed_datagrams(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runs: list[tuple[bytes, int]] = []

        async def main() -> None:
            async with up() as (left, right):
                send = left.link.send_sealed

                def keep(run: bytes, size: int) -> int:
                    runs.append((bytes(run), size))
                    return send(run, size)

                monkeypatch.setattr(left.link, "send_sealed", keep)
                left.send(whole(numbered(1)), whole(numbered(2)))
                assert numbers(await right.packets(2)) == [1, 2]
                again = [*runs, *runs]
                for data, size in again:
                    send(data, size)
                name = right.session.names[0]
                send((PREFIX + name).ljust(100, b"\x01"), 100)
                send((PREFIX + bytes(4)).ljust(100, b"\x01"), 100)  # names no key
                send(PREFIX[:1], 1)
                left.send(whole(numbered(3)))
                assert numbers(await right.packets(1)) == [3]
                assert right.vpn.dropped == {"forged": 1, "replayed": 4}
                assert not right.task.done()
                left.link.abort()
                await right.ended()
                assert right.all(VpnDropped) == [VpnDropped({"forged": 1, "replayed": 4})]

        run(main())

    def test_an_empty_datagram_is_a_sign_of_life_and_no_packet(self) -> None:
        async def main() -> None:
            async with up() as (left, right):
                sealer = left.session._keying.sealer
                assert sealer is not None
                heard = right.link.tunnel.heard
                left.link.send_sealed(sealer.seal([b""]), OVERHEAD)
                while right.link.tunnel.heard == heard:  # noqa: ASYNC110 (nothing announces it)
                    await asyncio.sleep(0.002)
                assert right.device.read_packets() == []
                assert right.vpn.dropped == {}

        run(main())

    def test_a_key_without_messages_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def main() -> None:
            async with up() as (left, right):
                sealer = left.session._keying.sealer
                assert sealer is not None
                monkeypatch.setattr(sealing, "LIMIT", sealer.counter + 2)
                left.send(partial(tcp(bytes(3000)), 1000))  # three parts, one more than it has
                while not left.vpn.dropped:  # noqa: ASYNC110 (nothing announces it)
                    await asyncio.sleep(0.002)
                left.send(whole(numbered(1)))
                assert numbers(await right.packets(1)) == [1]
                assert left.vpn.dropped == {"without a key": 3}
                assert not left.task.done()

        run(main())


# -- links that come and go -----------------------------------------------------------------------


class TestLinks:
    @pytest.mark.parametrize("leaver", [0, 1])
    def test_one_that_is_lost_and_another_with_the_same_device(self, leaver: int) -> None:
        async def main() -> None:
            async with ends() as both:
                for end in both:
                    await end.up()
                both[0].send(whole(ipv4(200, b"x", source=bytes([10, 77, 0, 3]))))
                both[0].send(whole(numbered(1)))
                assert numbers(await both[1].packets(1)) == [1]
                both[leaver].link.abort()
                error = await both[1 - leaver].ended()
                assert isinstance(error, PeerGoneError)
                assert await both[leaver].ended() is None
                reads = both[0].device.tun.reads
                both[0].send(whole(numbered(2)))  # while there is no link
                await asyncio.sleep(0.02)
                assert both[0].device.tun.reads == reads
                assert [end.device.closed for end in both] == [0, 0]
                async with links(purpose=Purpose.VPN) as again:
                    for end, link in zip(both, again, strict=True):
                        end.use(link)
                    both[0].send(whole(ipv4(200, b"x", source=bytes([10, 77, 0, 3]))))
                    both[0].send(whole(numbered(3)))
                    assert numbers(await both[1].packets(2)) == [2, 3]
                    assert [len(end.all(VpnUp)) for end in both] == [2, 2]
                    assert len(made) == 2
                    assert both[1].vpn.dropped == {"foreign": 2}
                    for end in both:
                        end.link.abort()
                        await end.ended()
            assert [end.device.closed for end in both] == [1, 1]

        run(main())

    def test_one_that_both_leave_ends_well(self) -> None:
        async def main() -> None:
            async with up() as (left, right):
                await asyncio.gather(left.link.leave(), right.link.leave())
                assert await left.ended() is None
                assert await right.ended() is None

        run(main())

    def test_one_that_is_over_leaves_no_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The next search may take hours, and this memory may be looked at meanwhile."""
        forgotten: list[keying.Keying] = []
        forget = keying.Keying.forget

        def noted(self: keying.Keying) -> None:
            forgotten.append(self)
            forget(self)

        monkeypatch.setattr(keying.Keying, "forget", noted)

        async def main() -> None:
            async with up() as (left, right):
                sessions = left.session, right.session
                assert forgotten == []
                left.link.abort()
                for end in (left, right):
                    await end.ended()
                assert {*forgotten} == {each._keying for each in sessions}
                for each in sessions:
                    assert each._keying.sealer is None
                    assert not each.names
                assert left.vpn.dropped == right.vpn.dropped == {}

        run(main())

    def test_one_that_is_over_already(self) -> None:
        async def main() -> None:
            async with links(purpose=Purpose.VPN) as (one, other):
                other.abort()
                await asyncio.wait({one.closed})
                end = End(LEFT)
                end.use(one)
                assert isinstance(await end.ended(), PeerGoneError)
                assert end.events == []

        run(main())

    def test_a_use_that_is_cancelled_leaves_link_and_device_alone(self) -> None:
        async def main() -> None:
            async with up() as (left, _):
                session = left.session
                left.task.cancel()
                await asyncio.wait({left.task})
                assert left.link.sealed_user is None
                assert not left.link.is_over
                assert left.device.closed == 0
                assert session._timer is None or session._timer.cancelled()
                left.send(whole(numbered(1)))
                reads = left.device.tun.reads
                await asyncio.sleep(0.02)
                assert left.device.tun.reads == reads
                assert left.vpn.dropped == {}

        run(main())

    def test_a_device_is_made_first(self) -> None:
        async def main() -> None:
            async with links(purpose=Purpose.VPN) as (one, _):
                vpn = Vpn(LEFT, lambda _: None)
                with pytest.raises(AssertionError, match="made first"):
                    await vpn.use(one)
                vpn.close()

        run(main())


class TestFailures:
    @pytest.mark.parametrize("able", [True, False])
    def test_packets_that_overtake_the_confirmation(self, able: bool) -> None:
        """The server begins by them: nothing that has waited in the client's device is lost."""

        async def main() -> None:
            async with links(purpose=Purpose.VPN) as (one, other):
                left, right = End(LEFT), End(RIGHT)
                if not able:
                    right.device.error = DeviceError("no")
                left.use(one)
                left.send(*(whole(numbered(each)) for each in range(3)))
                right.use(other)
                if able:
                    assert numbers(await right.packets(3)) == [0, 1, 2]
                else:
                    assert await right.ended() is right.device.error
                    assert isinstance(await left.ended(), PeerGoneError)
                for end in (left, right):
                    end.link.abort()
                    await end.ended()

        run(main())

    def test_a_device_that_can_not_be_set_up(self) -> None:
        async def main() -> None:
            async with ends() as (left, right):
                left.device.error = DeniedError("not without CAP_NET_ADMIN")
                assert await left.ended() is left.device.error
                assert left.events == []
                error = await right.ended()
                assert isinstance(error, PeerGoneError)
                assert "was stopped" in str(error)

        run(main())

    def test_a_device_that_somebody_deletes(self) -> None:
        async def main() -> None:
            async with up() as (left, right):
                left.device.tun.error = DeviceError("deleted by somebody else")
                left.send(whole(numbered(1)))
                assert await left.ended() is left.device.tun.error
                assert isinstance(await right.ended(), PeerGoneError)

        run(main())

    def test_a_device_that_can_not_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise DeniedError("no")

        monkeypatch.setattr(vpn_module, "VpnDevice", refuse)
        vpn = Vpn(LEFT, lambda _: None)
        with pytest.raises(DeniedError):
            vpn.open()
        vpn.close()

    @pytest.mark.parametrize(
        ("user", "error"), [("no-such-user-here", UsageError), ("nobody", DeniedError)]
    )
    def test_a_user_that_nobody_can_become_is_told_at_once(
        self, user: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is needed once both sides have agreed, which may be hours later."""
        monkeypatch.setattr("os.geteuid", lambda: 12_345)
        vpn = Vpn(make_plan(addresses=["10.77.0.1/24"], user=user), lambda _: None)
        with pytest.raises(error):
            vpn.open()
        assert made == []
        vpn.close()

    def test_the_rights_that_are_kept_are_the_devices(self) -> None:
        vpn = Vpn(LEFT, lambda _: None, frozenset({"net_bind_service"}))
        vpn.open()
        assert made[0].keep == {"net_bind_service"}
        vpn.close()


# -- the path -------------------------------------------------------------------------------------


class TestPath:
    def test_that_becomes_narrower(self) -> None:
        async def main() -> None:
            async with up() as (left, right):
                session, before = left.session, left.device.mtu
                session.path_narrowed(1300)
                session.path_narrowed(1300)  # no news
                session.path_narrowed(1400)  # nor is a larger one
                mtu = 1300 - OVERHEAD - PART
                assert left.device.configured[1:] == [(mtu, OUTER)]
                assert left.all(VpnResized) == [VpnResized("nat0", mtu)]
                frame = partial(tcp(bytes(range(250)) * 20), before - 40)
                left.send(frame, whole(udp(bytes(mtu - 28))), whole(udp(bytes(mtu - 28 + 10))))
                found = await right.packets(6)
                assert max(map(len, found)) <= mtu
                payload = b"".join(each[40:] for each in found[:-1])
                assert payload == bytes(range(250)) * 20
                assert len(found[-1]) == mtu
                assert left.vpn.dropped == {"too large": 1}
                assert len(await left.packets(1)) == 1  # ICMP

        run(main())

    def test_that_the_device_can_not_follow_ends_it(self) -> None:
        async def main() -> None:
            async with up() as (left, right):
                left.device.error = DeviceError("somebody has deleted it")
                left.session.path_narrowed(1200)
                assert await left.ended() is left.device.error
                assert left.all(VpnResized) == []
                assert isinstance(await right.ended(), PeerGoneError)

        run(main())

    @pytest.mark.usefixtures("kernel")
    def test_that_is_said_to_be_too_narrow_for_ipv6_does_it_no_harm(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever guesses the ports can say so, with one forged packet of ICMP."""
        monkeypatch.setattr(vpn_session, "_WIDEN", 0.02)
        known = [1300]
        monkeypatch.setattr(vpn_session, "path_mtu", lambda _: known[-1])

        async def main() -> None:
            async with up() as (left, right):
                before = left.device.mtu
                assert mtus == [before, before]
                left.say_too_big(1300)
                assert left.device.mtu == 1280 == mtus[-1]
                assert left.all(VpnResized) == [VpnResized("nat0", 1280)]
                sent = [bytes(range(250)) * 20, bytes(range(125)) * 40]
                for version, payload in zip((4, 6), sent, strict=True):
                    left.send(partial(tcp(payload, version=version), before - 60))
                left.send(whole(udp(bytes(1200), version=4)), whole(udp(bytes(1100), version=6)))
                found = await right.packets(12)
                assert max(map(len, found)) <= 1300 - 28 - OVERHEAD - PART
                for version, payload in zip((4, 6), sent, strict=True):
                    head = 40 if version == 4 else 60
                    parts = [each[head:] for each in found[:-2] if each[0] >> 4 == version]
                    assert b"".join(parts) == payload
                # As large as the device takes, and alone: it is cut, too.
                alone = bytes(range(244)) * 5
                left.send(whole(tcp(alone, version=6)))
                assert b"".join(each[60:] for each in await right.packets(2)) == alone
                right.send(whole(backwards(b"back")))
                assert await left.packets(1) == [backwards(b"back")]
                # As long as the kernel believes it, and then as before.
                await asyncio.sleep(0.05)
                assert left.device.mtu == 1280
                known.append(65_536)
                while left.device.mtu < before:  # noqa: ASYNC110 (it is a property)
                    await asyncio.sleep(0.005)
                assert left.all(VpnResized)[1:] == [VpnResized("nat0", before)]
                left.send(whole(udp(bytes(before - 28))))
                assert [len(each) for each in await right.packets(1)] == [before]
                assert left.session._widening is None
                assert left.vpn.dropped == right.vpn.dropped == {}
                assert not left.task.done()

        run(main())

    def test_that_becomes_wider_step_by_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(vpn_session, "_WIDEN", 0.01)
        known: list[int | None] = [None]

        def path_mtu(_: Endpoint) -> int | None:
            if known[-1] == 0:
                raise LocalNetworkError("no route", errno.ENETUNREACH)
            return known[-1]

        monkeypatch.setattr(vpn_session, "path_mtu", path_mtu)

        async def main() -> None:
            async with up() as (left, _):
                before = left.device.mtu
                left.session.path_narrowed(600)
                narrow = 600 - OVERHEAD - PART
                expected = [narrow]
                for mtu, now in (
                    (None, narrow),  # a system that does not say
                    (0, narrow),  # there is no network at present
                    (500, narrow),  # narrower than was reported: datagrams that are lost will tell
                    (1000, 1000 - 28 - OVERHEAD - PART),
                    (9000, before),  # the peer can't take more
                ):
                    known.append(mtu)
                    await asyncio.sleep(0.05)
                    assert left.device.mtu == now
                    expected += [now] if now != expected[-1] else []
                assert [each.mtu for each in left.all(VpnResized)] == expected
                assert left.session._widening is None

        run(main())

    def test_is_not_looked_at_any_more_when_it_is_over(self) -> None:
        async def main() -> None:
            async with up() as (left, _):
                left.session.path_narrowed(1000)
                widening = left.session._widening
                assert widening is not None
                left.link.abort()
                await left.ended()
                assert widening.cancelled()

        run(main())

    def test_is_not_believed_while_it_leads_into_the_device_itself(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As for a moment after this host has lost its way: sealed packets are too large there."""
        monkeypatch.setattr(vpn_session, "_WIDEN", 0.01)
        monkeypatch.setattr(vpn_session, "path_mtu", lambda _: 65_536)
        sources: list[str | None] = ["127.0.0.1"]

        def source_for(_: Endpoint) -> Endpoint:
            source = sources[-1]
            if source is None:
                raise LocalNetworkError("no route", errno.ENETUNREACH)
            return Endpoint(source, 1)

        monkeypatch.setattr(vpn_session, "source_for", source_for)

        async def main() -> None:
            async with up() as (left, right):
                before = left.device.mtu
                for inside in ("10.77.0.1", "fd77::1"):
                    sources.append(inside)
                    left.say_too_big(before)
                    assert (left.device.mtu, left.all(VpnResized)) == (before, [])
                sources.append(None)
                left.say_too_big(1400)
                assert left.device.mtu == 1400 - 28 - OVERHEAD - PART
                # Nor that it has become wide.
                sources.append("10.77.0.1")
                await asyncio.sleep(0.05)
                assert left.device.mtu < before
                sources.append("192.0.2.1")
                while left.device.mtu < before:  # noqa: ASYNC110 (it is an attribute)
                    await asyncio.sleep(0.005)
                left.send(whole(udp(bytes(before - 28))))
                assert [len(each) for each in await right.packets(1)] == [before]

        run(main())

    def test_that_is_narrow_before_anything_passes_is_found_out_again(self) -> None:
        async def main() -> None:
            async with links(purpose=Purpose.VPN) as (one, _):
                end = End(LEFT)
                end.use(one)
                await asyncio.sleep(0)
                end.session.path_narrowed(1200)
                assert (end.device.configured, end.events) == ([], [])
                one.abort()
                await end.ended()

        run(main())

    def test_the_way_to_the_peer_is_kept_while_there_is_no_link_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vpn_module, "_LOOK", 0.01)

        async def main() -> None:
            async with up(ALL, OFFERED) as both:
                device = both[0].device
                both[0].session.path_changed()
                both[0].link.abort()
                await both[0].ended()
                device.error = DeviceError("no network at present")
                seen = len(device.around)
                while len(device.around) < seen + 3:  # noqa: ASYNC110 (nothing announces it)
                    await asyncio.sleep(0.005)
                assert all(each == [OUTER] for each in device.around)
                both[0].vpn.close()
                seen = len(device.around)
                await asyncio.sleep(0.05)
                assert len(device.around) == seen
                assert both[1].device.around == [[OUTER]]  # nothing of its routes covers the peer

        run(main())

    def test_a_peer_that_moves_is_kept_out_of_the_tunnel(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with up(ALL, OFFERED) as (end, _):
                tunnel = end.link.tunnel
                there = tunnel.path
                moved = there._replace(remote=there.remote._replace(host="127.0.0.9"))
                monkeypatch.setattr(tunnel, "path", moved)
                end.session.path_changed()
                assert end.device.around[-1] == [OTHER]
                monkeypatch.setattr(tunnel, "path", there)

        run(main())


class TestKeepingWays:
    """To where the peer is, or is looked for."""

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(vpn_module, "_LOOK", 0.01)

    @staticmethod
    def opened(plan: Plan, mtu: int = 1400) -> tuple[Vpn, FakeDevice]:
        vpn = Vpn(plan, lambda _: None)
        vpn.open()
        made[0].mtu = mtu
        return vpn, made[0]

    def test_to_several_addresses_at_once_and_again(self) -> None:
        async def main() -> None:
            vpn, device = self.opened(ALL)
            outers = [OUTER, OTHER, OUTER]
            vpn.keep_ways(iter(outers))
            assert device.around == [[OUTER, OTHER]]  # before the first packet goes there
            while len(device.around) < 4:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.005)
            vpn.keep_ways([OTHER])
            assert device.around[-1] == [OTHER]
            seen = len(device.around)
            await asyncio.sleep(0.05)
            assert len(device.around) > seen
            assert all(each == [OTHER] for each in device.around[seen:])
            vpn.close()

        run(main())

    def test_one_of_them_inside_is_enough(self) -> None:
        async def main() -> None:
            vpn, device = self.opened(make_plan(addresses=["10.77.0.9/24"]))
            vpn.keep_ways([OUTER, INSIDE])
            assert device.around == [[OUTER, INSIDE]]
            vpn.close()

        run(main())

    def test_is_done_once_where_none_leads_inside(self) -> None:
        """The ways that there were before are to be left."""

        async def main() -> None:
            vpn, device = self.opened(make_plan(addresses=["10.77.0.9/24"]))
            outside = [OUTER, ip_address("2001:db8::1")]
            vpn.keep_ways([*outside, INSIDE])
            vpn.keep_ways(outside)
            await asyncio.sleep(0.03)
            assert device.around == [[*outside, INSIDE], outside]
            vpn.close()

        run(main())

    def test_that_could_not_be_left_are_left_later(self) -> None:
        async def main() -> None:
            vpn, device = self.opened(make_plan(addresses=["10.77.0.9/24"]))
            device.error = DeviceError("the kernel has no memory")
            vpn.keep_ways([OUTER])
            while len(device.around) < 3:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.005)
            device.error = None
            await asyncio.sleep(0.03)
            seen = len(device.around)
            await asyncio.sleep(0.03)
            assert len(device.around) == seen
            vpn.close()

        run(main())

    def test_is_for_addresses_that_the_device_knows_before_it_is_up(self) -> None:
        """It gives up rights then, of which the next path may need one."""

        async def main() -> None:
            vpn, device = self.opened(ALL, mtu=0)
            vpn.keep_ways(iter([ip_address("2001:db8::1"), OTHER]))
            assert device.expected == [[ip_address("2001:db8::1"), OTHER]]
            assert device.around == []
            vpn.close()

        run(main())

    def test_begins_with_the_device(self) -> None:
        """Until it is up, all ways are as they were."""

        async def main() -> None:
            vpn, device = self.opened(ALL, mtu=0)
            vpn.keep_ways([OUTER])
            await asyncio.sleep(0.03)
            assert device.around == []
            device.mtu = 1400
            while not device.around:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.005)
            vpn.close()

        run(main())

    def test_a_failure_is_tried_again(self) -> None:
        async def main() -> None:
            vpn, device = self.opened(ALL)
            device.error = DeviceError("the network is down")
            vpn.keep_ways([OUTER])
            while len(device.around) < 3:  # noqa: ASYNC110 (nothing announces it)
                await asyncio.sleep(0.005)
            vpn.close()
            seen = len(device.around)
            await asyncio.sleep(0.03)
            assert len(device.around) == seen

        run(main())
