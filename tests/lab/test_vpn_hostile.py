"""An authenticated peer that lies in every packet: nothing enters the device, all is counted."""

from __future__ import annotations

import ipaddress
import json
import random
import signal
import struct
import sys
from typing import TYPE_CHECKING

from nat_traverse.lab import Kind, Lab
from support import packets
from support.lab import eventually
from support.programs import Program
from support.sides import LEFT_PORT, RIGHT_PORT, address, left
from support.vpns import DEVICE, LEFT, RIGHT, SECRET, V4, V6, pings

if TYPE_CHECKING:
    from pathlib import Path

# Our own program, but for each packet of its device it sends what `hostile` returns.
SCRIPT = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
from lab.test_vpn_hostile import hostile
from nat_traverse.carry import vpn_session
from nat_traverse.cli import main

class Cutter(vpn_session.Cutter):
    def cut(self, frame):
        return [[part] for part in hostile()] + super().cut(frame)

vpn_session.Cutter = Cutter
sys.exit(main(sys.argv[1:]))
"""


def hostile() -> list[bytes]:
    """Return parts of which none may enter the device of the other side."""
    peer, ours = packed(V4[1]), packed(V4[0])
    peer6, ours6 = packed(V6[1]), packed(V6[0])
    datagram = struct.pack("!HHHH", 9, 9, 28, 0) + bytes(20)
    segment = struct.pack("!HHIIBBHHH", 9, 9, 1, 1, 0x50, 0x10, 500, 0, 0)
    good = packets.ipv4(packets.UDP, datagram, source=peer, destination=ours)
    good6 = packets.ipv6(packets.UDP, datagram, source=peer6, destination=ours6)
    headers = packets.ipv4(packets.TCP, segment, source=peer, destination=ours)
    headers6 = packets.ipv6(packets.TCP, segment, source=peer6, destination=ours6)
    stranger = packed("192.0.2.66")
    spoofed = [
        packets.ipv4(packets.UDP, datagram, source=stranger, destination=ours),
        packets.ipv4(packets.UDP, datagram, source=ours, destination=ours),
        packets.ipv4(packets.UDP, datagram, source=peer, destination=stranger),
        packets.ipv4(packets.UDP, datagram, source=peer, destination=packed("127.0.0.1")),
        packets.ipv6(packets.UDP, datagram, source=packed("2001:db8::6"), destination=ours6),
    ]
    malformed = [
        good[:-1],
        good + b"x",
        good6[:-1],
        b"\x45" + bytes(19),
        b"\x4f" + good[1:],  # options beyond the end
        b"\x55" + good[1:],  # no such version
        b"\x60" + bytes(39),
        bytes(60),
    ]
    size = 1000
    full, head = bytes(size), struct.Struct("!BHH")
    super_packets = [
        # As large as no packet is; a size of nothing; segments that are none of that size.
        head.pack(2, 0xFFFF, size) + headers + full,
        head.pack(2, 70, size) + headers6 + full,
        head.pack(2, 0, 0) + headers + full,
        head.pack(2, 0, size) + headers + full[:-1],
        head.pack(3, 0, size) + headers + full + b"x",
        head.pack(3, 0, size) + headers,
        # Headers of TCP or UDP that go beyond the end, or are of another protocol.
        head.pack(2, 0, size) + headers[:-8] + b"\xf0" + headers[-7:] + full[:8],
        head.pack(2, 0, size) + packets.ipv4(1, bytes(8), source=peer, destination=ours) + full,
        head.pack(2, 0, size) + headers[:10],
    ]
    return [
        *(bytes([kind]) + packet for kind in (0, 1) for packet in (*spoofed, *malformed)),
        # A fragment has no checksum of its own to be finished.
        b"\1" + packets.ipv4(17, datagram, source=peer, destination=ours, fragment=0x2000),
        *super_packets,
        *(bytes([kind]) + good for kind in (4, 77, 255)),
        b"\0",
        b"\2",
        random.Random(5).randbytes(900),
    ]


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def received(lab: Lab) -> int:
    """Return how many packets have entered the left device."""
    shown = lab.left.run(["ip", "-json", "-statistics", "link", "show", DEVICE]).stdout
    return int(json.loads(shown)[0]["stats64"]["rx"]["packets"])


def test_no_lie_enters_the_device(tmp_path: Path) -> None:
    script = tmp_path / "hostile.py"
    script.write_text(SCRIPT)
    tests = __file__.rpartition("/lab/")[0]
    spec = f"{RIGHT_PORT}:{{}}:{LEFT_PORT}"
    with Lab(Kind.DROP, Kind.DROP) as lab:
        argv = [sys.executable, str(script), tests, "--json", *RIGHT]
        with (
            left(lab, *LEFT, env=SECRET) as one,
            Program([*argv, spec.format(address(lab.left))], lab.right, env=SECRET) as other,
        ):
            one.event("vpn-up")
            other.event("vpn-up")
            # Each ping of the peer's brings all of the lies, and is answered.
            for _ in range(5):
                assert pings(lab.right, V4[0], count=1)
            eventually(lambda: received(lab) >= 5, "the pings")
            assert received(lab) == 5
            assert pings(lab.left, V6[1], count=1)
            one.signal(signal.SIGTERM)
            one.wait()
            counts = one.event("vpn-dropped")["counts"]
            assert sum(counts.values()) >= 5 * len(hostile())
            for word in ("foreign", "malformed", "bad segment", "too long", "unknown kind"):
                assert counts[word] >= 5, counts
