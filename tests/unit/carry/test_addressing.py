from __future__ import annotations

import random
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from nat_traverse.carry.addressing import Agreement, Plan, covers, halves, make_plan
from nat_traverse.errors import NotAgreedError, UsageError
from nat_traverse.wire.vpn import Terms, encode_terms


def packed(text: str) -> bytes:
    return ip_address(text).packed


def terms(*addresses: str, announced: tuple[str, ...] = ()) -> Terms:
    return Terms(tuple(map(ip_interface, addresses)), tuple(map(ip_network, announced)), 1368)


def agreed(plan: Plan, theirs: Terms) -> set[str]:
    return set(map(str, Agreement(plan, theirs).peers))


class TestMakePlan:
    def test_what_was_given(self) -> None:
        plan = make_plan(
            addresses=["10.77.0.1/24", "fd77::1/64", "10.77.0.1/24"],
            routes=["192.168.7.9/24"],
            announced=["fd07::/48"],
            device="work0",
            user="nobody",
        )
        assert plan == Plan(
            (ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")),
            (ip_network("192.168.7.0/24"),),
            (ip_network("fd07::/48"),),
            "work0",
            "nobody",
        )
        assert plan.has_ipv6

    def test_what_leads_inside(self) -> None:
        """That is not the routes alone: the kernel makes one to the network of each address."""
        plan = make_plan(addresses=["10.77.0.1/24", "fd77::1/64"], routes=["192.168.7.0/24"])
        assert set(map(str, plan.inside)) == {"10.77.0.0/24", "fd77::/64", "192.168.7.0/24"}

    def test_as_many_networks_as_can_be_announced(self) -> None:
        networks = [f"10.{high}.{low}.0/24" for high in range(4) for low in range(256)]
        with pytest.raises(UsageError, match=r"only the first \d+ do\. Announce larger") as caught:
            make_plan(addresses=["10.77.0.1/24"], announced=networks)
        begin = "--announce: too much for one VPN: 1024 networks do not fit"
        assert str(caught.value).startswith(begin)
        # What fits there fits into the message.
        first = int(str(caught.value).partition("the first ")[2].partition(" ")[0])
        plan = make_plan(addresses=["10.77.0.1/24"], announced=networks[:first])
        assert encode_terms(Terms(plan.addresses, plan.announced, 1368))
        with pytest.raises(UsageError):
            make_plan(addresses=["10.77.0.1/24"], announced=networks[: first + 1])

    def test_more_addresses_than_can_be_told(self) -> None:
        with pytest.raises(UsageError, match=r"^--vpn: too much for one VPN: .* Give fewer"):
            make_plan(addresses=[f"10.77.{each}.1/24" for each in range(256)])

    @pytest.mark.parametrize("address", ["10.0.0.0/31", "10.0.0.1/31", "10.0.0.0/32", "fd00::/128"])
    def test_a_network_of_two_has_no_address_of_its_own(self, address: str) -> None:
        assert make_plan(addresses=[address]).addresses == (ip_interface(address),)

    @pytest.mark.parametrize(
        ("address", "problem"),
        [
            ("10.0.0.1", "length of the network is missing, as in 10.77.0.1/24"),
            ("10.0.0.1/33", "no address with its network"),
            ("gateway/24", "no address with its network"),
            ("", "length of the network is missing"),
            ("10.0.0.0/24", "stands for the network itself"),
            ("10.0.0.255/24", "or for all of its hosts"),
            ("fd00::/64", "stands for the network itself"),
            ("224.0.0.1/24", "no address of one host"),
            ("127.0.0.1/8", "no address of one host"),
            ("fe80::1/64", "every IPv6 device has such an address already"),
            ("::/0", "no address of one host"),
        ],
    )
    def test_no_address_of_a_host(self, address: str, problem: str) -> None:
        with pytest.raises(UsageError, match=problem):
            make_plan(addresses=[address])

    @pytest.mark.parametrize("network", ["here", "10.0.0.0/40", "224.0.0.0/8", "127.0.0.0/8", ""])
    def test_no_network(self, network: str) -> None:
        for option in ("routes", "announced"):
            with pytest.raises(UsageError, match=f"--(route|announce) {network!r}|can't be behind"):
                make_plan(addresses=["10.0.0.1/24"], **{option: [network]})  # type: ignore[arg-type]

    def test_a_network_of_a_family_without_an_address(self) -> None:
        with pytest.raises(UsageError, match="--route fd07::/64 needs an IPv6 address"):
            make_plan(addresses=["10.0.0.1/24"], routes=["fd07::/64"])

    @pytest.mark.parametrize(
        "name", ["", "a/b", "sixteen-bytes-ab", "nat%d", "a b", ".", "..", "a:1"]
    )
    def test_a_name_that_linux_refuses(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"No network device can be called.*--vpn-device\.$"):
            make_plan(addresses=["10.0.0.1/24"], device=name)

    def test_an_empty_user(self) -> None:
        with pytest.raises(UsageError, match="--user"):
            make_plan(addresses=["10.0.0.1/24"], user="")


class TestAgreement:
    def test_two_addresses_of_one_network(self) -> None:
        plan = make_plan(addresses=["10.77.0.1/24", "fd77::1/64"])
        assert agreed(plan, terms("10.77.0.2/24", "fd77::2/64")) == {"10.77.0.2", "fd77::2"}

    def test_a_family_that_only_the_peer_has_is_left_alone(self) -> None:
        plan = make_plan(addresses=["10.77.0.1/24"])
        assert agreed(plan, terms("10.77.0.2/24", "fd77::2/64")) == {"10.77.0.2"}

    def test_no_family_in_common(self) -> None:
        plan = make_plan(addresses=["10.77.0.1/24"])
        with pytest.raises(NotAgreedError, match="IPv4 only, and the other side has none"):
            Agreement(plan, terms("fd77::2/64"))

    def test_the_same_address(self) -> None:
        with pytest.raises(NotAgreedError, match=r"Both sides have the address 10\.77\.0\.1"):
            Agreement(make_plan(addresses=["10.77.0.1/24"]), terms("10.77.0.1/24"))

    def test_an_address_of_another_network(self) -> None:
        with pytest.raises(
            NotAgreedError, match=r"10\.78\.0\.2/24, which is in no network of this"
        ):
            Agreement(make_plan(addresses=["10.77.0.1/24"]), terms("10.78.0.2/24"))

    def test_an_address_that_is_routed(self) -> None:
        plan = make_plan(addresses=["10.77.0.1/32"], routes=["10.77.0.2/32"])
        assert agreed(plan, terms("10.77.0.2/32")) == {"10.77.0.2"}

    @pytest.mark.parametrize("announced", ["192.168.7.0/24", "192.168.0.0/16"])
    def test_a_route_to_what_is_announced(self, announced: str) -> None:
        plan = make_plan(addresses=["10.77.0.1/24"], routes=["192.168.7.0/24"])
        agreement = Agreement(plan, terms("10.77.0.2/24", announced=(announced,)))
        assert agreement.admits(packed("192.168.7.200"), packed("10.77.0.1"))
        # Announced, and not asked for.
        assert not agreement.admits(packed("192.168.8.1"), packed("10.77.0.1"))

    @pytest.mark.parametrize("announced", [(), ("192.168.7.0/25",), ("fd07::/64",)])
    def test_a_route_to_what_is_not_announced(self, announced: tuple[str, ...]) -> None:
        plan = make_plan(addresses=["10.77.0.1/24"], routes=["192.168.7.0/24"])
        with pytest.raises(NotAgreedError, match=r"given --announce 192\.168\.7\.0/24"):
            Agreement(plan, terms("10.77.0.2/24", announced=announced))

    def test_a_route_of_ipv6(self) -> None:
        plan = make_plan(addresses=["fd77::1/64"], routes=["fd07::/64"])
        agreement = Agreement(plan, terms("fd77::2/64", announced=("192.168.0.0/16", "fd07::/48")))
        assert agreement.admits(packed("fd07::99"), packed("fd77::1"))


class TestAdmits:
    PLAN = make_plan(
        addresses=["10.77.0.1/24", "fd77::1/64"],
        routes=["192.168.7.0/24"],
        announced=["192.168.5.0/24"],
    )
    THEIRS = terms("10.77.0.2/24", "fd77::2/64", announced=("192.168.7.0/24",))

    @pytest.mark.parametrize(
        ("source", "destination", "passes"),
        [
            ("10.77.0.2", "10.77.0.1", True),
            ("192.168.7.9", "192.168.5.9", True),
            ("10.77.0.2", "10.77.0.255", True),
            ("10.77.0.2", "224.0.0.251", True),
            ("fd77::2", "fd77::1", True),
            ("fd77::2", "ff02::fb", True),
            # Another host of the network, which is not the peer; this side itself; anybody.
            ("10.77.0.3", "10.77.0.1", False),
            ("10.77.0.1", "10.77.0.1", False),
            ("8.8.8.8", "10.77.0.1", False),
            ("fe80::2", "fd77::1", False),
            # What this host would forward, and never announced.
            ("10.77.0.2", "192.168.6.1", False),
            ("10.77.0.2", "127.0.0.1", False),
            ("10.77.0.2", "8.8.8.8", False),
            ("fd77::2", "fd77::3", False),
        ],
    )
    def test_what_passes(self, source: str, destination: str, passes: bool) -> None:
        agreement = Agreement(self.PLAN, self.THEIRS)
        for _ in range(2):  # the second time from memory
            assert agreement.admits(packed(source), packed(destination)) is passes

    @pytest.mark.parametrize(
        ("source", "passes"),
        [
            ("8.8.8.8", True),
            ("2001:db8::8", True),
            ("169.254.0.1", False),
            ("127.0.0.1", False),
            ("127.8.8.8", False),
            ("224.0.0.1", False),
            ("239.255.255.250", False),
            ("0.0.0.0", False),  # noqa: S104 (nothing is bound to it)
            ("fe80::1", False),
            ("febf::1", False),
            ("::1", False),
            ("ff02::1", False),
            ("::", False),
        ],
    )
    def test_a_default_route_makes_the_peer_nobody_of_this_link(
        self, source: str, passes: bool
    ) -> None:
        """Neither this host nor its router: all other addresses may be the peer's."""
        plan = make_plan(addresses=["10.77.0.1/24", "fd77::1/64"], routes=["0.0.0.0/0", "::/0"])
        theirs = terms("10.77.0.2/24", "fd77::2/64", announced=("0.0.0.0/0", "::/0"))
        agreement = Agreement(plan, theirs)
        here = "fd77::1" if ":" in source else "10.77.0.1"
        for _ in range(2):  # the second time from memory
            assert agreement.admits(packed(source), packed(here)) is passes

    @pytest.mark.parametrize("claimed", ["fe80::1", "::1", "::ffff:10.77.0.1", "127.0.0.1"])
    def test_nor_can_it_claim_such_an_address(self, claimed: str) -> None:
        plan = make_plan(addresses=["10.77.0.1/24", "fd77::1/64"], routes=["0.0.0.0/0", "::/0"])
        all_of_them = ("0.0.0.0/0", "::/0")
        theirs = terms("10.77.0.2/24", "fd77::2/64", claimed, announced=all_of_them)
        with pytest.raises(NotAgreedError, match="of no use beyond a link"):
            Agreement(plan, theirs)

    def test_a_link_of_ipv4_may_be_chosen(self) -> None:
        plan = make_plan(addresses=["169.254.7.1/24"])
        agreement = Agreement(plan, terms("169.254.7.2/24"))
        assert agreement.admits(packed("169.254.7.2"), packed("169.254.7.1"))

    @pytest.mark.parametrize(
        ("ours", "peer", "last", "passes"),
        [
            ("10.77.0.1/30", "10.77.0.2/30", "10.77.0.3", True),
            # Of two the last is a host (RFC 3021): here the peer itself, and somebody else.
            ("10.77.0.0/31", "10.77.0.1/31", "10.77.0.1", False),
            ("10.77.0.1/32", "10.77.0.2/24", "10.77.0.255", False),
        ],
    )
    def test_to_all_hosts_of_a_network_that_has_such_an_address(
        self, ours: str, peer: str, last: str, passes: bool
    ) -> None:
        plan = make_plan(addresses=[ours], routes=["10.77.0.2/32"])
        agreement = Agreement(plan, terms(peer, "10.77.0.2/32"))
        source = packed(peer.partition("/")[0])
        assert agreement.admits(source, packed(last)) is passes
        assert agreement.admits(source, packed(ours.partition("/")[0]))
        assert agreement.admits(source, packed("224.0.0.251"))

    def test_a_host_alone_is_not_taken_for_all_of_its_network(self) -> None:
        plan = make_plan(addresses=["10.77.0.1/32"], routes=["10.77.0.2/32"])
        agreement = Agreement(plan, terms("10.77.0.2/32"))
        assert list(map(str, agreement.destinations)) == ["10.77.0.1/32", "224.0.0.0/4"]

    def test_whoever_makes_up_pairs_fills_no_memory(self) -> None:
        agreement, chance = Agreement(self.PLAN, self.THEIRS), random.Random(1)
        for _ in range(10_000):
            assert not agreement.admits(chance.randbytes(16), packed("fd77::1"))
        assert len(agreement._known) <= 4096
        assert agreement.admits(packed("10.77.0.2"), packed("10.77.0.1"))


def test_a_default_route_is_routed_in_halves() -> None:
    assert list(map(str, halves(ip_network("0.0.0.0/0")))) == ["0.0.0.0/1", "128.0.0.0/1"]
    assert list(map(str, halves(ip_network("10.0.0.0/8")))) == ["10.0.0.0/8"]


def test_covers() -> None:
    networks = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    assert covers(networks, ip_address("10.1.2.3"))
    assert covers(networks, ip_address("fd00::1"))
    assert not covers(networks, ip_address("11.0.0.1"))
