"""What the lab's gateways and routers do with packets, as rules for nft. Pure functions.

The behaviours are those of RFC 4787. All gateways here are Linux masquerading: the mapping and the
filtering depend on address and port. They differ in the port that a mapping gets and in what meets
a packet that nobody behind the gateway asked for.
"""

from __future__ import annotations

from enum import Enum

# nft's parser knows `fwd` as a word of its own, so no chain below may be called that; and it wants
# every closing brace on a line of its own.

# Loss is stated in percent and drawn in units of a hundredth of one.
_LOSS_UNITS = 10_000

# How long an unused mapping is remembered: RFC 4787 REQ-5 asks for at least 2 minutes.
_HAIRPIN_MEMORY = "2m"


class Kind(Enum):
    """What stands between a host and the Internet. The values are what a user types."""

    NONE = "none"  # nothing: the host has a public address
    DROP = "drop"  # keeps the source port; unsolicited packets vanish
    REJECT = "reject"  # keeps the source port; unsolicited packets are refused by ICMP
    ACCEPT = "accept"  # keeps the source port; takes unsolicited packets for its own (poisoning)
    RANDOM = "random"  # a new random port for every destination; unsolicited packets vanish
    DOUBLE = "double"  # two `drop` gateways in a row, the outer one being the carrier's
    IPV6 = "ipv6"  # a stateful firewall without translation, on a network without IPv4

    @property
    def layers(self) -> int:
        """How many gateways a packet passes between the host and the Internet."""
        return {Kind.NONE: 0, Kind.DOUBLE: 2}.get(self, 1)

    @property
    def has_ipv4(self) -> bool:
        """Whether the network behind it has IPv4 at all."""
        return self is not Kind.IPV6


# What a packet that nobody behind the gateway asked for meets at its WAN side.
_UNSOLICITED = {
    Kind.REJECT: "reject with icmpx type port-unreachable",
    Kind.ACCEPT: "accept",
}


def gateway(kind: Kind) -> str:
    """Return the rules of one gateway between `lan` and `wan`.

    Towards the gateway itself an unsolicited packet meets what the kind says. One that is
    addressed to a host behind it, which only IPv6 can do, is dropped, or refused where the kind
    refuses: a gateway that takes packets for its own does not therefore let them through.
    """
    unsolicited = _UNSOLICITED.get(kind, "drop")
    through = "drop" if unsolicited == "accept" else unsolicited
    ports = " random,fully-random" if kind is Kind.RANDOM else ""
    return f"""
table inet gateway {{
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname "wan" ct state established,related accept
        iifname "wan" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        iifname "wan" {unsolicited}
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        ct state established,related accept
        iifname "wan" {through}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        meta nfproto ipv4 oifname "wan" masquerade{ports}
    }}
}}
"""


def hairpin(public: str) -> str:
    """Return the rules that a `drop` gateway needs in addition to hairpin (RFC 4787, REQ-9).

    A Linux gateway that only masquerades does not hairpin. A packet from its LAN to its own public
    address is delivered to the gateway itself: it never passes the postrouting hook, so it makes
    no mapping, and as nothing listens it is refused by ICMP. Gateways that do hairpin keep a table
    of mappings beside conntrack. Here that is a set: which host last sent from a source port.

    Until the destination's port is in the table the packet is dropped, and not refused, because a
    packet that reaches the gateway becomes a conntrack entry, and a later packet of the same flow
    would follow that entry and not this table.
    """
    return f"""
table ip hairpin {{
    map hosts {{
        type inet_service : ipv4_addr
        flags dynamic,timeout
        timeout {_HAIRPIN_MEMORY}
    }}
    chain learn {{
        type filter hook prerouting priority mangle; policy accept;
        iifname "lan" meta l4proto udp update @hosts {{ udp sport : ip saddr }}
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname "lan" ip daddr {public} meta l4proto udp dnat to udp dport map @hosts
    }}
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname "lan" ip daddr {public} meta l4proto udp drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ct status dnat oifname "lan" snat to {public}
    }}
}}
"""


def router(left: str, right: str, loss: float) -> str:
    """Return the rules of an Internet router between the links `left` and `right`.

    It counts UDP packets as they arrive from either side and as they leave to it, and IP fragments.
    Between the two, `loss` percent of the packets that it forwards are dropped, each way. There
    is no connection tracking here, which would put fragments together before they are counted.
    """
    return f"""
table inet router {{
    counter from_left {{
    }}
    counter from_right {{
    }}
    counter to_left {{
    }}
    counter to_right {{
    }}
    counter fragments {{
    }}
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        meta nfproto ipv4 ip frag-off & 0x3fff != 0 counter name fragments
        meta nfproto ipv6 exthdr frag exists counter name fragments
        iifname "{left}" meta l4proto udp counter name from_left
        iifname "{right}" meta l4proto udp counter name from_right
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        {_loss(loss)}
    }}
    chain postrouting {{
        type filter hook postrouting priority filter; policy accept;
        oifname "{left}" meta l4proto udp counter name to_left
        oifname "{right}" meta l4proto udp counter name to_right
    }}
}}
"""


def _loss(percent: float) -> str:
    units = round(percent * _LOSS_UNITS / 100)
    if units >= _LOSS_UNITS:
        return "drop"
    return f"numgen random mod {_LOSS_UNITS} < {units} drop" if units else ""
