"""A gateway that takes packets for its own, and what it does to a search."""

from __future__ import annotations

import re

import pytest

from nat_traverse.lab import Kind, Lab
from support.lab import eventually, has_lost_its_port, take_its_port, udp_socket
from support.sides import LEFT_PORT, RIGHT_PORT, address, left, right, transfer

# s; the second attempt of the search, in which the port is cured, and the third one's first probes.
PATIENCE = 420.0


def test_a_gateway_that_took_one_packet_for_its_own_spoils_the_port_for_all() -> None:
    with Lab(Kind.ACCEPT, Kind.RANDOM) as lab:
        (gateway,) = lab.left_gateways
        there, back = address(lab.right), address(lab.left)
        with udp_socket(lab.left, LEFT_PORT) as one, udp_socket(lab.right, RIGHT_PORT) as other:
            one.sendto(b"kept", (there, 5000))
            eventually(lambda: len(gateway.conntrack()) == 1, "the host's packet passes")
            assert not has_lost_its_port(gateway, LEFT_PORT)
            other.sendto(b"uninvited", (back, LEFT_PORT))
            eventually(lambda: len(gateway.conntrack()) == 2, "the gateway takes the packet")
            table = "\n".join(gateway.conntrack())
            spoiled = re.search(rf"sport=(\d+) dport={LEFT_PORT} \[UNREPLIED\]", table)
            assert spoiled is not None
            one.sendto(b"spoiled", (there, int(spoiled[1])))
            one.sendto(b"spoiled as well", (there, 6000))
            eventually(lambda: len(gateway.conntrack()) == 4, "the host's packets pass")
            assert has_lost_its_port(gateway, LEFT_PORT)
            table = "\n".join(gateway.conntrack())
            assert re.search(rf"sport=5000 dport={LEFT_PORT}\b", table)
            assert re.search(r"sport=6000 dport=\d+", table)
            assert not re.search(rf"sport=6000 dport={LEFT_PORT}\b", table)


@pytest.mark.timeout(500)
def test_a_search_whose_port_is_spoiled_is_cured_by_its_next_attempt() -> None:
    """Which takes five minutes, of waiting: there is no quicker way with a real gateway.

    This one takes nothing for its own, so nothing spoils the port a second time.
    """
    patient = "--timeout=0"
    with Lab(Kind.DROP, Kind.RANDOM) as lab:
        (gateway,) = lab.left_gateways
        with left(lab, patient) as first:
            first.event("opened")
            take_its_port(gateway, lab.left, LEFT_PORT, address(lab.right))
            assert has_lost_its_port(gateway, LEFT_PORT)
            with right(lab, patient) as second:
                first.event("connected", patience=PATIENCE)
                second.event("connected")
                # Were it found without a cure, what was lent would still be there.
                assert not has_lost_its_port(gateway, LEFT_PORT)
                transfer(first, second)
