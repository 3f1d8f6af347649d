"""Our --vpn next to OpenVPN and wireguard-go, and kernel TCP through it next to TCP without it.

    python -m bench.vpn [--rounds N] [--seconds S] [--path-seconds S] [--ours COMMAND]
                        [--part PART] [--only NAME]...

The first part is two hosts behind two kernel NATs, with an Internet with an MTU of 1,500 between:
see `nat_traverse.lab`. The NATs keep ports, and OpenVPN and wireguard-go are told these by hand.
All three run in user space, with the MTU that each has by itself, and carry what iperf3 sends from
left to right:

one, four    flows of kernel TCP with cubic
small        datagrams of UDP with 64 bytes, as fast as the kernel takes them
Gbit/s       of TCP's payload that came out; of small datagrams it is how many came out, a second
CPU s/GB     processor time of both ends of the VPN per 10^9 bytes that came out, without what TCP
             and iperf3 cost beside it; of small datagrams it is microseconds each

All of it three times, because wires carry datagrams and not trains of UDP_SEGMENT: trains stay
whole, as between virtual machines; they are cut by the sender's card and joined again by the
receiver's (GRO), as cards do on Linux; or they are cut and arrive one by one, which is the hardest.

The second part is the paths of bench/wan.py, on which packets are delayed, limited, lost and
reordered one by one by the relay of relay.c. Kernel TCP with cubic and with bbr runs there with our
VPN and without it, from its first byte for so many seconds. Headers and tags are the VPN's to pay
for: what is compared is payload.

How late the relay was is said of TCP without the VPN; where that was too often, the machine was
measured, and a promise counts as broken.

Rounds are interleaved; printed are medians. The exit status is 1 when a promise was not kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import _iperf, _vpns
from bench._paths import Cut, natted, wire
from bench._stats import Verdict, median, print_table
from bench._streams import UnavailableError
from bench.wan import rows

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from bench._paths import Natted, Sums, Weather, Wire
    from bench._vpns import Network
    from bench.wan import Row

# What the project promises of its VPN.
_OVER_OTHERS = 2.5  # goodput
_CPU_OVER_OTHERS = 1.0  # processor time per byte, at most
_OVER_BARE_TCP = 0.9  # goodput

# Share of packets that the relay may deliver late: see bench/wan.py.
_LATE = 0.05

# Promised is what is found in the world: trains that stay whole or are joined again. The third form
# is a card that does not join, which Linux has not had since 2018; it is shown.
_PROMISED = (Cut.NEVER, Cut.JOINED)

_OURS, _OPENVPN, _WIREGUARD = _NAMES = ("ours", "OpenVPN", "wireguard-go")
_ONE, _FOUR, _SMALL = _LOADS = ("one", "four", "small")
_FLOWS = {_ONE: 1, _FOUR: 4}
_CONTROLS = ("cubic", "bbr")

_FIRST_PORT = 40000  # each network has a port pair of its own, since NATs remember for minutes
_IPERF_PORT = 5201


class Result(NamedTuple):
    """What one program did in one round, or the medians of all of them."""

    rate: float  # bit/s of payload, or datagrams a second
    cpu: float  # s per byte, or per datagram


Results = dict[tuple[Cut, str, str], list[Result]]  # by form, load and program


def start(
    name: str, route: _vpns.Route, directory: Path, port: int, template: str
) -> AbstractContextManager[Network]:
    """Run a program's two ends."""
    if name == _OURS:
        return _vpns.ours(route, directory, port, template)
    other = _vpns.openvpn if name == _OPENVPN else _vpns.wireguard
    return other(route, directory, port)


def carry(route: _vpns.Route, network: Network, load: str, seconds: float) -> Result:
    """Send one load through a network that stands."""
    before = network.cpu()
    ends = (route.left, route.right, network.right, _IPERF_PORT, seconds)
    if load == _SMALL:
        carried = _iperf.udp(*ends)
        count, rate = carried.packets, carried.packets / carried.seconds
    else:
        carried = _iperf.tcp(*ends, "--parallel", str(_FLOWS[load]), "--congestion", "cubic")
        count, rate = carried.bytes, carried.bytes * 8 / carried.seconds
    network.check()
    return Result(rate, (network.cpu() - before) / max(1, count))


def compare(path: Natted, names: list[str], count: int, seconds: float, template: str) -> Results:
    """Run all programs with all loads in all forms, so many times."""
    results: Results = defaultdict(list)
    port = _FIRST_PORT
    for cut in Cut:
        path.set(cut)
        for number in range(1, count + 1):
            for name in tuple(names):
                try:
                    with tempfile.TemporaryDirectory() as directory:
                        started = start(name, path, Path(directory), port, template)
                        port += 2
                        with started as network:
                            for load in _LOADS:
                                result = carry(path, network, load, seconds)
                                results[cut, load, name].append(result)
                                print(
                                    f"{cut.name.lower():7} round {number}  {name:12}  {load:5}"
                                    f"  {_words(load, result)}",
                                    flush=True,
                                )
                except UnavailableError as error:
                    print(f"{name} is not available: {error}", flush=True)
                    names.remove(name)
    return results


def _words(load: str, result: Result) -> str:
    if load == _SMALL:
        return f"{result.rate:8.0f} a second  {result.cpu * 1e6:6.2f} CPU us each"
    return f"{result.rate / 1e9:8.2f} Gbit/s    {result.cpu * 1e9:6.2f} CPU s/GB"


def judge_programs(results: Results, verdict: Verdict) -> None:
    """Print medians and ratios, and note what was promised."""
    medians = {
        key: Result(median([one.rate for one in many]), median([one.cpu for one in many]))
        for key, many in results.items()
    }
    nothing = Result(float("nan"), float("nan"))
    for cut in Cut:
        print(f"\nmedians; real NATs, MTU 1,500, {cut.value}")
        table = []
        for load in _LOADS:
            ours = medians.get((cut, load, _OURS), nothing)
            for name in _NAMES:
                if (cut, load, name) not in medians:
                    continue
                its = medians[cut, load, name]
                small = load == _SMALL
                table.append(
                    [
                        f"{load:5}  {name}",
                        f"{its.rate:.0f}" if small else f"{its.rate / 1e9:.2f}",
                        f"{its.cpu * 1e6:.2f}" if small else f"{its.cpu * 1e9:.2f}",
                        f"{ours.rate / its.rate:.2f}",
                        f"{its.cpu / ours.cpu:.2f}",
                    ]
                )
        print_table(
            ["", "Gbit/s, or a second", "CPU s/GB, or us", "ours / it", "its CPU / ours"], table
        )
    for (cut, load, name), its in medians.items():
        ours = medians.get((cut, load, _OURS), nothing)
        if cut not in _PROMISED or load == _SMALL or name == _OURS or ours is nothing:
            continue
        what = f"over {name}'s, {load}, {cut.value}"
        verdict.at_least(f"goodput {what}", ours.rate / its.rate, _OVER_OTHERS)
        verdict.at_most(f"CPU per byte {what}", ours.cpu / its.cpu, _CPU_OVER_OTHERS)


def compare_tcp(joined: Wire, count: int, seconds: float, template: str) -> list[Row]:
    """Run kernel TCP with the VPN and without it on all paths, so many times.

    The VPN stays up for all that is measured on a path. The rates of a row are by the congestion
    control's name, and by "ours" before it.
    """
    measured = rows()
    controls = [control for control in _CONTROLS if _has(joined, control)]
    port = _FIRST_PORT
    for row in measured:
        joined.set(row.weather)
        with tempfile.TemporaryDirectory() as directory:
            with start(_OURS, joined, Path(directory), port, template) as network:
                addresses = {"": str(joined.right.public.v4), f"{_OURS} ": network.right}
                for number in range(count):
                    # In each round everybody has the same bad luck, as far as that is possible.
                    weather = replace(row.weather, seed=number)
                    for control in controls:
                        for prefix, address in addresses.items():
                            rate, sums = _send(joined, weather, address, control, seconds)
                            row.rates.setdefault(prefix + control, []).append(rate)
                            if not prefix:
                                row.delivered += sums.delivered
                                row.late += sums.late
                            print(
                                f"{row.name:34}  {prefix + control:10}  {rate / 1e6:7.1f} Mbit/s"
                                f"  {sums.words()}",
                                flush=True,
                            )
                    network.check()
            port += 2
    print(f"packets lost between a host and the relay: {joined.dropped_by_hosts()}")
    return measured


def _has(joined: Wire, control: str) -> bool:
    there = joined.left.run(["cat", "/proc/sys/net/ipv4/tcp_available_congestion_control"])
    if control in there.stdout.split():
        return True
    print(f"{control} is not available: this kernel lacks it", flush=True)
    return False


def _send(
    joined: Wire, weather: Weather, address: str, control: str, seconds: float
) -> tuple[float, Sums]:
    joined.set(weather)
    carried = _iperf.tcp(
        joined.left, joined.right, address, _IPERF_PORT, seconds, "--congestion", control
    )
    return carried.bytes * 8 / carried.seconds, joined.set(weather)


def judge_tcp(measured: list[Row], verdict: Verdict) -> None:
    """Print medians and ratios, and note what was promised."""
    print("\nmedians of kernel TCP's payload, Mbit/s")
    heading = ["round trip, rate, trouble"]
    for control in _CONTROLS:
        heading += [control, "with VPN", "ratio"]
    table = []
    for row in measured:
        line = [row.name]
        for control in _CONTROLS:
            bare, ours = row.middle(control), row.middle(f"{_OURS} {control}")
            line += [f"{bare / 1e6:.1f}", f"{ours / 1e6:.1f}", f"{ours / bare:.2f}"]
        table.append([*line, f"{row.lateness:.1%}"])
    print_table([*heading, "relay late"], table)
    for row in measured:
        for control in _CONTROLS:
            if control in row.rates:
                ratio = row.middle(f"{_OURS} {control}") / row.middle(control)
                verdict.at_least(
                    f"{control} over bare {control}, {row.name}", ratio, _OVER_BARE_TCP
                )
        verdict.at_most(f"share that the relay was late with, {row.name}", row.lateness, _LATE)


def main() -> int:
    """Run all rounds, print the tables, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of everything (3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load behind NATs (5)")
    # A connection at 1 Gbit/s and 50 ms needs its first ones to get going.
    parser.add_argument("--path-seconds", type=float, default=10.0, help="on other paths (10)")
    parser.add_argument("--ours", default=_vpns.OURS_TEMPLATE, help="template of our command")
    parser.add_argument("--part", choices=("programs", "tcp"), help="leave out the other part")
    parser.add_argument("--only", action="append", choices=_NAMES, help="leave out the others")
    options = parser.parse_args()
    verdict = Verdict()
    if options.part != "tcp":
        names = list(options.only or _NAMES)
        with natted() as path:
            results = compare(path, names, options.rounds, options.seconds, options.ours)
        judge_programs(results, verdict)
    if options.part != "programs":
        with wire(rows()[0].weather) as joined:
            measured = compare_tcp(joined, options.rounds, options.path_seconds, options.ours)
        judge_tcp(measured, verdict)
    return verdict.exit_code()


if __name__ == "__main__":
    sys.exit(main())
