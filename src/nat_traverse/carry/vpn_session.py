"""One link's part of a VPN: packets between the device and sealed datagrams.

Theory of operation
-------------------
The device is there for as long as the run lasts; links come and go (`vpn`). On each of them

1. both sides say which addresses they have, which networks they announce, and how large a part
   they can take (a NETWORK frame), and each judges for itself whether that fits (`addressing`);
2. meanwhile keys are agreed on (`tunnel.keying`);
3. with both done the device is brought up, the first time, and is read from then on.

Going out, a frame of the device (up to 64 KiB, which the kernel would have cut later) is cut into
parts, each part is sealed as one datagram, and what has one size leaves in one system call. Coming
in, a run of datagrams is opened, joined as far as it fits together, and written. Nothing is
repeated and nothing waits: packets are lost here as on any network, and TCP inside of them sees it.
The one queue is the device's own. When the socket is full, the device is not read.
"""

from __future__ import annotations

import errno
import ipaddress
import secrets
from collections import Counter, deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from nat_traverse.carry.addressing import Agreement
from nat_traverse.carry.vpn_events import VpnResized, VpnUp
from nat_traverse.errors import (
    LocalNetworkError,
    NatTraverseError,
    NotAgreedError,
    PeerGoneError,
    RemoteProtocolError,
)
from nat_traverse.net.offload import CALL
from nat_traverse.net.processor import has_aes
from nat_traverse.net.route import path_mtu, source_for
from nat_traverse.net.tun import MAX_FRAME, Offload
from nat_traverse.tunnel.events import Closing
from nat_traverse.tunnel.keying import Keying
from nat_traverse.tunnel.packets import Cutter, Joiner, couple
from nat_traverse.tunnel.sealing import Cipher
from nat_traverse.wire import icmp, virtio
from nat_traverse.wire.control import Frame
from nat_traverse.wire.sealed import OVERHEAD
from nat_traverse.wire.vpn import Terms, decode_terms, encode_terms

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from nat_traverse.carry.addressing import Address, Plan
    from nat_traverse.carry.vpn_device import VpnDevice
    from nat_traverse.carry.vpn_events import VpnEvent
    from nat_traverse.link.link import Link

# Bytes taken off the device in one go, before the socket and the timers get their turn: some
# milliseconds' work. A system call counts as CALL bytes, as with the socket.
_OCTETS: Final = 512 * 1024

# Bytes of packets that are sealed and sent before more are read: as much as one call can send.
_BATCH: Final = 64 * 1024

# Bytes of the smallest part that a peer may limit this side to. RFC 791 has every host take packets
# of 576 bytes.
_SMALLEST_PART: Final = 600

# How often a path that was reported to be narrow is looked at again (s). Linux forgets such a
# report after ten minutes.
_WIDEN: Final = 60.0

_OF_KEYS: Final = (Frame.KEY_OFFER, Frame.KEY_ANSWER, Frame.KEY_CONFIRM, Frame.KEY_WANTED)

# s that both sides have to agree on keys and addresses; three round trips and their repetitions.
_PATIENCE: Final = 15.0


class VpnSession:
    """The part of one link; the `SealedUser` of the link.

    `keep_ways` is called with the outer addresses whose way must not lead into the device. `failed`
    raises why this side has ended the link, if it has.
    """

    def __init__(
        self,
        plan: Plan,
        device: VpnDevice,
        link: Link,
        observe: Callable[[VpnEvent], None],
        keep_ways: Callable[[Iterable[Address]], None],
    ) -> None:
        self.failed: asyncio.Future[None] = link.loop.create_future()
        self._plan = plan
        self._observe = observe
        self._keep_ways = keep_ways
        self._device = device
        self._tun = device.tun
        self._link = link
        self._loop = link.loop
        ciphers = (Cipher.AES_256_GCM, Cipher.CHACHA20_POLY1305)
        self._keying = Keying(
            is_client=link.tunnel.is_client,
            ciphers=ciphers if has_aes() else ciphers[::-1],
            random=secrets.token_bytes,
            now=link.loop.time(),
            binding=link.tunnel.session,
        )
        self._largest = self._agreed_largest = link.connected.datagram_size - OVERHEAD
        self._agreement: Agreement | None = None
        self._cutter = Cutter(self._largest, self._answer_too_large)
        self._joiner = Joiner(self._admits, joins_udp=Offload.USO4 in self._tun.offload)
        self._frame = memoryview(bytearray(MAX_FRAME))
        self._unsent: deque[tuple[memoryview, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._widening: asyncio.TimerHandle | None = None
        self._refused_before = device.tun.refused
        self._unsealed = 0  # parts that there was no key for
        self._is_up = False
        self._reading = False

    # -- the life of a session ----------------------------------------------------------------

    def start(self) -> None:
        """Begin to agree with the peer."""
        plan = self._plan
        terms = Terms(plan.addresses, plan.announced, self._largest)
        self._link.tunnel.send_frame(Frame.NETWORK, encode_terms(terms))
        self._link.sealed_user = self
        self._limit = self._loop.call_later(_PATIENCE, self._give_up)
        self._go_on()

    def stop(self) -> None:
        """Leave the link and the device alone."""
        self._link.sealed_user = None
        self._read_device(wanted=False)
        for timer in (self._timer, self._limit, self._widening):
            if timer is not None:
                timer.cancel()
        self.failed.cancel()
        # What is left of a session that was lost may be looked at long after.
        self._keying.forget()

    @property
    def dropped(self) -> Counter[str]:
        """How many packets did not pass, and why."""
        keying = self._keying
        counts = Counter(self._joiner.dropped)
        counts["too large"] = self._cutter.too_large
        counts["unusable"] = self._cutter.unusable
        counts["refused by the kernel"] = self._tun.refused - self._refused_before
        counts["without a key"] = self._unsealed
        counts["forged"] = keying.forged
        counts["replayed"] = keying.replayed
        return +counts

    def frame_received(self, kind: int, value: bytes) -> None:
        """Take what the peer says of the VPN."""
        with self._guard():
            if kind == Frame.NETWORK:
                self._take_terms(decode_terms(value))
            elif kind in _OF_KEYS:
                self._keying.receive_frame(kind, value, self._loop.time())
            self._go_on()

    def path_changed(self) -> None:
        """Have the peer's new address keep the way that it has without the VPN."""
        if self._is_up:
            self._keep_ways([self._outer])

    def path_narrowed(self, datagram_size: int) -> None:
        """Cut smaller from now on."""
        largest = datagram_size - OVERHEAD
        if not self._is_up or largest >= self._largest or self._goes_inside:
            return
        self._change_largest(largest)
        if self._widening is None:
            self._widening = self._loop.call_later(_WIDEN, self._widen)

    @property
    def _goes_inside(self) -> bool:
        """Tell whether the way to the peer leads into our own device, for a moment.

        That it is too small for what is sealed says nothing of the path.
        """
        try:
            source = source_for(self._link.peer).host
        except LocalNetworkError:
            return False
        return source in {str(each.ip) for each in self._plan.addresses}

    def _widen(self) -> None:
        """Look whether the path takes more again: a report may be forged, and is forgotten."""
        self._widening = None
        peer = self._link.peer
        with suppress(LocalNetworkError):
            mtu = path_mtu(peer)
            if mtu is not None and not self._goes_inside:
                largest = min(mtu - peer.headers - OVERHEAD, self._agreed_largest)
                if largest > self._largest:
                    self._change_largest(largest)
        if self._largest < self._agreed_largest and not self.failed.done():
            self._widening = self._loop.call_later(_WIDEN, self._widen)

    def _change_largest(self, largest: int) -> None:
        before = self._device.mtu
        with self._guard():
            self._set_largest(largest)
            # Without the right to change it, senders are told of it one by one, by ICMP.
            if self._device.mtu != before:
                self._observe(VpnResized(self._device.name, self._device.mtu))

    def _take_terms(self, theirs: Terms) -> None:
        if self._agreement is not None:
            raise RemoteProtocolError("the addresses come a second time")
        if theirs.largest < _SMALLEST_PART:
            raise RemoteProtocolError(f"parts of {theirs.largest} bytes at most")
        self._agreement = Agreement(self._plan, theirs)
        self._largest = self._agreed_largest = min(self._largest, theirs.largest)

    def _go_on(self) -> None:
        """Say what is to be said, see to the timer, and begin once all is agreed on."""
        for kind, value in self._keying.frames():
            self._link.tunnel.send_frame(kind, value)
        self._link.wake()
        self._schedule()
        if not self._is_up and self._agreement is not None and self._keying.sealer is not None:
            self._begin(self._agreement)

    def _begin(self, agreement: Agreement) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._set_largest(self._largest)
        self._keep_ways([self._outer])
        self._is_up = True
        self._read_device(wanted=True)
        plan = self._plan
        self._observe(
            VpnUp(
                self._device.name,
                self._device.mtu,
                tuple(map(str, plan.addresses)),
                tuple(map(str, agreement.peers)),
                tuple(map(str, plan.routes)),
            )
        )

    def _set_largest(self, largest: int) -> None:
        self._largest = largest
        self._cutter.largest_plaintext = largest
        self._device.configure(self._cutter.mtu, self._outer)

    @property
    def _outer(self) -> Address:
        return ipaddress.ip_address(self._link.peer.host)

    def _give_up(self) -> None:
        text = (
            f"The other side did not agree on keys and addresses within {_PATIENCE:g} seconds. It"
            " may be of a version that can't do this."
        )
        self._fail(PeerGoneError(text, errno.ETIMEDOUT), Closing.STOPPED, "")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """End the link with what goes wrong; the peer is told as much as it is to know."""
        try:
            yield
        except RemoteProtocolError as error:
            text = f"The two sides do not understand each other ({error}): they may run different"
            gone = PeerGoneError(f"{text} versions of nat-traverse.", errno.EPROTO)
            self._fail(gone, Closing.PROTOCOL, str(error))
        except NotAgreedError as error:
            self._fail(error, Closing.NOT_AGREED, str(error))
        except NatTraverseError as error:  # the device can't be set up, or is gone
            self._fail(error, Closing.STOPPED, "")

    def _fail(self, error: NatTraverseError, code: Closing, text: str) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)
        self._link.abort(code, text)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self._keying.get_timer()
        if at is not None:
            self._timer = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        with self._guard():
            self._keying.handle_timer(self._loop.time())
            self._go_on()

    # -- from the peer ------------------------------------------------------------------------

    @property
    def names(self) -> Sequence[bytes]:
        """By which indices the peer's datagrams are known."""
        return self._keying.names

    def sealed_received(self, runs: Sequence[tuple[bytes, int]], now: float) -> int:
        """Open what has come, and write what may pass; returns how much was genuine."""
        keying, parts = self._keying, []
        for run, size in runs:
            parts += keying.open_run(run, size, now)
        if parts and not self._is_up:
            # The peer's first packets may be here before its KEY_CONFIRM.
            with self._guard():
                self._go_on()
        if self._is_up:
            write = self._tun.write
            for frame in self._joiner.join(parts):
                write(frame)
        return len(parts)

    def _admits(self, source: bytes, destination: bytes) -> bool:
        return self._agreement is not None and self._agreement.admits(source, destination)

    # -- to the peer --------------------------------------------------------------------------

    def sealed_writable(self) -> None:
        """Send what had no room, and go on."""
        while self._unsent:
            run, size = self._unsent[0]
            taken = self._link.send_sealed(run, size)
            if taken < len(run):
                self._unsent[0] = run[taken:], size
                return
            self._unsent.popleft()
        self._read_device(wanted=self._is_up)

    def _read_device(self, *, wanted: bool) -> None:
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._tun.fileno(), self._readable)
            else:
                self._loop.remove_reader(self._tun.fileno())

    def _readable(self) -> None:
        """Take what the device has, up to a limit, and send it."""
        with self._guard():
            self._carry()

    def _carry(self) -> None:
        octets = _OCTETS
        while octets > 0 and self._reading:
            trains: list[list[bytes]] = []
            room = _BATCH
            while room > 0:
                size = self._tun.read_into(self._frame)
                if size is None:
                    self._send(trains)
                    return
                trains += self._cutter.cut(self._frame[:size])
                room -= size + CALL
            octets -= _BATCH - room
            self._send(trains)

    def _send(self, trains: list[list[bytes]]) -> None:
        """Seal parts, and send what has one size with one call; the rest when there is room."""
        sealer = self._keying.sealer
        for train in couple(trains):
            run = b"" if sealer is None else sealer.seal(train)
            if sealer is None or not run:  # there is no key, or it has no messages left
                self._unsealed += len(train)
                continue
            size = len(train[0]) + OVERHEAD
            taken = 0 if self._unsent else self._link.send_sealed(run, size)
            if taken < len(run):
                self._unsent.append((memoryview(run)[taken:], size))
                self._read_device(wanted=False)

    def _answer_too_large(self, packet: memoryview, mtu: int) -> None:
        """Tell the sender of a packet that it does not fit, as a router has to."""
        version = packet[0] >> 4
        # From the peer's address: the kernel takes nothing that claims to come from its own.
        peers = () if self._agreement is None else self._agreement.peers
        peer = next((each for each in peers if each.version == version), None)
        answer = None if peer is None else icmp.too_big(packet, mtu, peer.packed)
        if answer is not None:
            self._tun.write([virtio.PLAIN, answer])
