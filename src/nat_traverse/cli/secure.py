"""The encrypted tunnel of the command line; apart, since its libraries are slow to import."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from nat_traverse.api import Settings, reach
from nat_traverse.carry.command import Detached, continue_detached, run_command
from nat_traverse.carry.datagram_relay import DatagramRelay, is_packet_socket
from nat_traverse.carry.forward import Forwards
from nat_traverse.carry.main_stream import MainStream
from nat_traverse.carry.stdio import STANDARD_INPUT, relay_standard_streams
from nat_traverse.carry.stream_relay import StreamRelay
from nat_traverse.cli import credentials
from nat_traverse.cli.plain import PlainBackground, use_plain
from nat_traverse.cli.search import punch_settings, watched
from nat_traverse.cli.title import hide_argument
from nat_traverse.errors import PeerGoneError
from nat_traverse.link.establish import Purpose, spare_ports
from nat_traverse.punch.ports import FIRST_PORT
from nat_traverse.punch.settings import DATAGRAM_SIZE, LARGE_DATAGRAM_SIZE
from nat_traverse.session import Hole, Opened
from nat_traverse.tunnel.events import Closing
from nat_traverse.tunnel.secure import CONSENT
from nat_traverse.wire.hello import Mode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nat_traverse.carry.addressing import Plan
    from nat_traverse.carry.vpn import Vpn
    from nat_traverse.cli.report import Report
    from nat_traverse.cli.settings import Connect
    from nat_traverse.link.link import Link

# s between the end of a tunnel and the search for the next: a peer that is stopped and started by
# a service manager needs about so long, and a peer that refuses at once is not asked without rest.
_REST = 0.5

# With --retry: how many keepalives in a row have to get no answer until the peer counts as lost,
# and how long (s) that takes at least. Three lost ones in a row are no chance.
_UNANSWERED = 3
_SHORTEST_SILENCE = 3.0


@dataclass(frozen=True, slots=True)
class SecureBackground:
    """The command has left a process behind, for which the tunnel has to stay."""

    detached: Detached
    main: MainStream
    connect: Connect

    async def go_on(self, observe: Callable[..., None]) -> None:
        """Go on with the tunnel until that process has ended, or the tunnel has."""
        link = self.main.link
        link.resume()
        try:
            make_relay = _relay_maker(self.main, self.connect, observe, packets=True)
            await continue_detached(self.detached, make_relay)
        finally:
            link.abort(Closing.STOPPED)


async def use_secure(connect: Connect, report: Report) -> int | PlainBackground | SecureBackground:
    """Make the encrypted tunnel and use it; with --retry, one after the other."""
    settings = _settings(connect)
    if connect.vpn is not None:
        return await _carry_packets(connect, report, settings, connect.vpn)
    if connect.forwards:
        return await _forward(connect, report, settings)
    while True:
        reached = await watched(report, reach, settings)
        if isinstance(reached, Hole):
            return await use_plain(connect, report, reached)
        try:
            return await _use_one_stream(connect, report, reached)
        except PeerGoneError as error:
            if not connect.retry:
                raise
            report.lost(_reason(error))
        finally:
            if not reached.is_suspended:
                reached.abort(Closing.STOPPED)
        settings = _again(settings, report, reached)
        await asyncio.sleep(_REST)


def _settings(connect: Connect) -> Settings:
    """Return what is to be reached. Raises UsageError and ErrnoError for bad credentials."""
    if connect.secret is not None:
        hide_argument(connect.secret)
    means = connect.means or credentials.means(
        connect.secret, connect.secret_file, os.environ, connect.identity, connect.peer_keys
    )
    purpose = Purpose.STREAM
    if connect.forwards:
        purpose = Purpose.FORWARDS
    elif connect.vpn is not None:
        purpose = Purpose.VPN
    elif connect.datagrams:
        purpose = Purpose.DATAGRAMS
    punching = replace(
        punch_settings(connect, Mode.TUNNEL),
        # Who asks for a proof, for more than bytes, or to be found again can do nothing with 0.7.
        roaming=bool(means.byte),
        legacy=not means.byte and purpose is Purpose.STREAM and not connect.retry,
        datagram_size=DATAGRAM_SIZE if connect.vpn is None else LARGE_DATAGRAM_SIZE,
    )
    keepalive = float(connect.keepalive)
    consent = CONSENT
    if connect.retry:
        # To find a path again costs little, so what is lost is to be noticed soon.
        consent = min(CONSENT, max(_SHORTEST_SILENCE, _UNANSWERED * keepalive))
    return Settings(punching, means, purpose, keepalive, consent)


def _reason(error: PeerGoneError) -> str:
    """Return what has happened, without the advice to do what is being done."""
    return str(error).partition(" Start both again")[0]


def _again(settings: Settings, report: Report, lost: Link) -> Settings:
    """Return what is to be reached once more: from the port that the peer knows, without limit."""
    punching = replace(
        settings.punch,
        timeout=None,
        local_port=report.agreed_port,
        spare=spare_ports(lost),
        last_known=lost.peer.host,
    )
    return replace(settings, punch=punching)


async def _use_one_stream(connect: Connect, report: Report, link: Link) -> int | SecureBackground:
    """Carry standard input and output, or those of a command."""
    main = MainStream(link)
    if connect.cmd is None:
        packets = connect.datagrams and is_packet_socket(STANDARD_INPUT)
        await relay_standard_streams(_relay_maker(main, connect, report.observe, packets=packets))
        return 0
    await main.wait()
    report.running(connect.cmd)
    make_relay = _relay_maker(main, connect, report.observe, packets=True)
    status = await run_command(connect.cmd, make_relay, packets=connect.datagrams)
    if isinstance(status, int):
        return status
    link.suspend()
    return SecureBackground(status, main, connect)


def _relay_maker(
    main: MainStream, connect: Connect, observe: Callable[..., None], *, packets: bool
) -> Callable[..., StreamRelay]:
    """Return what makes relays; `packets`: whether reads of the source keep packets apart."""
    if connect.datagrams:
        return partial(DatagramRelay, main, observe=observe, keeps_packets=packets)
    return partial(StreamRelay, main, observe=observe)


async def _forward(connect: Connect, report: Report, settings: Settings) -> int:
    """Forward ports until the tunnel is over; with --retry, over one tunnel after the other."""
    forwards = Forwards(
        None,
        report.observe,
        locals_=connect.locals_,
        remotes=connect.remotes,
        dynamics=connect.dynamics,
        exposed=connect.exposed,
    )

    async def use(link: Link) -> None:
        try:
            forwards.rebind(link)
            await asyncio.shield(link.closed)
        finally:
            forwards.rebind(None)

    try:
        # Before the search: a port that is taken is told at once.
        await forwards.start()
        return await _over_links(connect, report, settings, use)
    finally:
        await forwards.stop()


async def _carry_packets(connect: Connect, report: Report, settings: Settings, plan: Plan) -> int:
    """Be one end of a VPN until the tunnel is over; with --retry, over one after the other."""
    from nat_traverse.carry.vpn import Vpn  # noqa: PLC0415 (few runs are for this)

    # Who gives up the rights of root may need the port again.
    needs_port = connect.retry and 0 < connect.target.local_port < FIRST_PORT
    keep = frozenset({"net_bind_service"} if needs_port else ())
    vpn = Vpn(plan, report.observe, keep)

    async def find(settings: Settings, observe: Callable[..., None]) -> Link | Hole:
        def see(event: object) -> None:
            if isinstance(event, Opened):
                # Where the peer is looked for must not be looked for through the VPN.
                vpn.keep_ways(ip_address(each.host) for each in event.remotes)
            observe(event)

        return await reach(settings, see)

    try:
        # Before the search: a right that is missing is told at once.
        vpn.open()
        report.attach("vpn", partial(_vpn_state, vpn))
        return await _over_links(connect, report, settings, vpn.use, find)
    finally:
        vpn.close()


def _vpn_state(vpn: Vpn) -> dict[str, object]:
    """Return what `nat-traverse status` shows of a VPN."""
    device, plan = vpn.device, vpn.plan
    return {
        "device": None if device is None else device.name,
        "mtu": None if device is None or not device.mtu else device.mtu,
        "addresses": list(map(str, plan.addresses)),
        "routes": list(map(str, plan.routes)),
        "announced": list(map(str, plan.announced)),
        "dropped": vpn.dropped,
    }


async def _over_links(
    connect: Connect,
    report: Report,
    settings: Settings,
    use: Callable[[Link], Awaitable[None]],
    find: Callable[..., Awaitable[Link | Hole]] | None = None,
) -> int:
    """Find the peer and `use` the link, once, or with --retry for ever; returns the exit code."""
    while True:
        link = await watched(report, find or reach, settings)
        if isinstance(link, Hole):
            raise AssertionError("a 0.7 peer was not wanted")  # noqa: TRY004 (a bug)
        try:
            await use(link)
            if not connect.retry:
                return 0
            report.lost("The other side ended the tunnel.")
        except PeerGoneError as error:
            if not connect.retry:
                raise
            report.lost(_reason(error))
        finally:
            link.abort(Closing.STOPPED)
        settings = _again(settings, report, link)
        await asyncio.sleep(_REST)
