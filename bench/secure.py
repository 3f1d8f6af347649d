"""Goodput and processor time of the encrypted tunnel, next to ssh, OpenVPN and bare QUIC.

    python -m bench.secure [--rounds N] [--seconds S] [--ours COMMAND] [--join] [--only NAME]...

Two hosts on a virtual cable with an MTU of 1,500. Trains of UDP datagrams are cut at its beginning,
as hardware does it on the way to a wire. With --join they are joined again at its end (GRO), as the
drivers of network cards do; without, every datagram arrives alone, which is harder. TCP's segments
stay uncut, which is to ssh's advantage. Rounds are interleaved; printed are medians:

ours        the default tunnel with a secret, from a pipe to a pipe
ssh         the same pipes, through `ssh` and an sshd of its own, aes128-gcm@openssh.com
OpenVPN     kernel TCP with cubic through OpenVPN in user space, AES-256-GCM; its processor time is
            that of both OpenVPN processes, without what TCP costs beside them
bare qh3    the QUIC library alone (_qh3.py), out of memory into nothing

goodput     bytes that came out, from the first byte fed to the last one out
CPU s/GB    processor time of both ends with all their children, per 10^9 bytes that came out

The exit status is 1 when a promise was not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench import _certificate, _streams
from bench._paths import cable
from bench._stats import Verdict, median, print_table
from bench._streams import Result, UnavailableError
from bench.datapath import End

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench._paths import Pair

# What the project promises of its encrypted tunnel.
_OVER_QH3 = 0.7
_OVER_OPENVPN = 1.0

_OURS, _SSH, _OPENVPN, _QH3 = _NAMES = ("ours", "ssh", "OpenVPN", "bare qh3")

_FIRST_PORT = 40000  # each transfer has a port pair of its own: nobody waits for a port
_QH3_PROGRAM = Path(__file__).with_name("_qh3.py")
_PATIENCE = 60.0  # s beyond the measurement itself


def bare_qh3(pair: Pair, directory: Path, port: int, seconds: float) -> Result:
    """Send with the QUIC library alone."""
    certificate = _certificate.make(directory, "qh3")
    left, right = str(pair.left.public.v4), str(pair.right.public.v4)
    program = [sys.executable, str(_QH3_PROGRAM)]
    files = [str(certificate.certificate), str(certificate.key)]
    receiver = End(
        pair.right, [*program, "receive", right, str(port), left, str(port), *files], directory
    )
    try:
        sender = End(
            pair.left,
            [*program, "send", left, str(port), right, str(port), str(seconds)],
            directory,
        )
        try:
            sender.process.wait(seconds + _PATIENCE)
            cpu = sender.finish() + receiver.finish()
            for end in (sender, receiver):
                if end.status():
                    raise RuntimeError(f"bare qh3 failed:\n{end.errors()}")
            with open(receiver.output, closefd=False) as output:
                report = json.loads(output.read())
        finally:
            sender.close()
    finally:
        receiver.close()
    return Result(report["bytes"] * 8 / report["seconds"], cpu / (report["bytes"] / 1e9))


def measure(name: str, pair: Pair, port: int, seconds: float, template: str) -> Result:
    """Run one program once."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        if name == _QH3:
            return bare_qh3(pair, directory, port, seconds)
        if name == _OURS:
            stream = _streams.ours(pair, directory, port, template)
        else:
            start = _streams.ssh if name == _SSH else _streams.openvpn
            stream = start(pair, directory, port)
        with stream as running:
            return _streams.whole(running, seconds)


def rounds(names: list[str], count: int, run: Callable[[str, int], Result]) -> list[Results]:
    """Run every program in turn, so many times; one that is not there is left out, and said."""
    results = {name: Results(name) for name in names}
    port = _FIRST_PORT
    for number in range(1, count + 1):
        for name in names:
            if name not in results:
                continue
            try:
                result = run(name, port)
            except UnavailableError as error:
                print(f"{name} is not available: {error}", flush=True)
                del results[name]
                continue
            port += 2
            results[name].add(result)
            print(
                f"round {number}  {name:9}  {result.goodput / 1e9:6.2f} Gbit/s"
                f"  {result.cpu:6.2f} CPU s/GB",
                flush=True,
            )
    return list(results.values())


class Results:
    """All rounds of one program."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._rounds: list[Result] = []

    def add(self, result: Result) -> None:
        """Note a round."""
        self._rounds.append(result)

    @property
    def goodput(self) -> float:
        """The median in bit/s."""
        return median([result.goodput for result in self._rounds])

    @property
    def cpu(self) -> float:
        """The median in s per 10^9 bytes."""
        return median([result.cpu for result in self._rounds])


def main() -> int:
    """Run all rounds, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each program (5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of sending in each (5)")
    parser.add_argument("--ours", default=_streams.OURS_TEMPLATE, help="template of our command")
    parser.add_argument("--join", action="store_true", help="join trains on arrival (GRO)")
    parser.add_argument("--only", action="append", choices=_NAMES, help="leave out the others")
    options = parser.parse_args()
    names = options.only or list(_NAMES)
    with cable(join=options.join) as (pair, cut):
        print(cut, flush=True)
        results = rounds(
            names,
            options.rounds,
            lambda name, port: measure(name, pair, port, options.seconds, options.ours),
        )
    return judge({result.name: result for result in results})


def judge(results: dict[str, Results]) -> int:
    """Print medians and ratios, and return the exit status."""
    nothing = Results("none")
    ours = results.get(_OURS, nothing)
    print("\nmedians; one stream over a cable with an MTU of 1,500")
    print_table(
        ["", "Gbit/s", "CPU s/GB", "ours / it", "its CPU / ours"],
        [
            [
                name,
                f"{result.goodput / 1e9:.2f}",
                f"{result.cpu:.2f}",
                f"{ours.goodput / result.goodput:.2f}",
                f"{result.cpu / ours.cpu:.2f}",
            ]
            for name, result in results.items()
        ],
    )
    verdict = Verdict()
    if _OURS not in results:
        return verdict.exit_code()  # nothing of ours was asked for
    for name, promise in ((_QH3, _OVER_QH3), (_OPENVPN, _OVER_OPENVPN)):
        if name in results:
            ratio = ours.goodput / results[name].goodput
            verdict.at_least(f"goodput over that of {name}", ratio, promise)
    return verdict.exit_code()


if __name__ == "__main__":
    sys.exit(main())
