"""The VPN: a network device, for as long as the run lasts, and the links that come and go.

What a link's part of it is stands in `vpn_session`. Between two links the device stays, up and with
its addresses. What is sent to it waits in its queue, of which the kernel drops what is too much.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final

from nat_traverse.carry.addressing import covers
from nat_traverse.carry.vpn_device import VpnDevice
from nat_traverse.carry.vpn_events import VpnDropped
from nat_traverse.carry.vpn_session import VpnSession
from nat_traverse.errors import DeviceError
from nat_traverse.net.privileges import check_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from nat_traverse.carry.addressing import Address, Plan
    from nat_traverse.carry.vpn_events import VpnEvent
    from nat_traverse.link.link import Link

# How often the way around the VPN is looked at (s), where there is one: some lines of a table.
_LOOK: Final = 1.0


class Vpn:
    """The device of `plan`, and the link that it uses at present.

    `keep` are rights, by names of `net.privileges`, that are not given up with `--user`. `open`
    raises DeviceError or DeniedError, before anything is searched for.
    """

    def __init__(
        self,
        plan: Plan,
        observe: Callable[[VpnEvent], None],
        keep: AbstractSet[str] = frozenset(),
    ) -> None:
        self.plan = plan
        self._keep = keep
        self.observe = observe
        self.device: VpnDevice | None = None
        self._session: VpnSession | None = None
        self._dropped: Counter[str] = Counter()
        self._outers: tuple[Address, ...] = ()  # where the peer is, or may be
        self._looking: asyncio.TimerHandle | None = None

    def open(self) -> VpnDevice:
        """Make the device, and see to it that what comes later can be done."""
        if self.plan.user is not None:
            check_user(self.plan.user)
        self.device = VpnDevice(self.plan, self._keep)
        return self.device

    async def use(self, link: Link) -> None:
        """Carry packets over `link` until it is over.

        Returns when the other side has ended it as it should be. Raises NotAgreedError if the two
        sides' addresses do not fit, DeviceError, and what ended the link.
        """
        if self.device is None:
            raise AssertionError("the device is made first")
        session = self._session = VpnSession(
            self.plan, self.device, link, self.observe, self.keep_ways
        )
        try:
            session.start()
            await asyncio.wait({session.failed, link.closed}, return_when=asyncio.FIRST_COMPLETED)
            # What this side has to say explains more than that the link is over.
            (session.failed if session.failed.done() else link.closed).result()
        finally:
            self._session = None
            session.stop()
            counts = session.dropped
            self._dropped += counts
            if counts:
                self.observe(VpnDropped(dict(counts)))

    def keep_ways(self, outers: Iterable[Address]) -> None:
        """See to it from now on that what goes to these outer addresses does not go inside.

        They are those that the peer has, or at which it is looked for.
        """
        self._outers = tuple(dict.fromkeys(outers))
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self.device is not None:
            self.device.expect(self._outers)
        self._look()

    def _look(self) -> None:
        # Without a link, too: it is then that the peer is searched for. And once where none of them
        # leads inside: ways that were needed before have to go.
        again = any(covers(self.plan.inside, each) for each in self._outers)
        try:
            if self.device is not None and self.device.mtu:
                self.device.go_around(self._outers)
        except DeviceError:
            again = True  # there is no network at present
        if again:
            self._looking = asyncio.get_running_loop().call_later(_LOOK, self._look)

    @property
    def dropped(self) -> dict[str, int]:
        """How many packets did not pass since the start, and why."""
        now = Counter() if self._session is None else self._session.dropped
        return dict(self._dropped + now)

    def close(self) -> None:
        """Remove the device, with its addresses and routes."""
        if self._looking is not None:
            self._looking.cancel()
        if self.device is not None:
            self.device.close()
            self.device = None
