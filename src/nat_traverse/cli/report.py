"""What the user reads while it works: lines, or one JSON object a line; always standard error.

The words of a report are made here and in `tunnel_words`. Addresses are spelled by this host,
numbers are numbers, and the few texts of a peer's (why it refuses a forward) are escaped.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Final

from nat_traverse.carry.receiver import OutputOverflowed
from nat_traverse.cli import complaint
from nat_traverse.cli.settings import NORMAL, QUIET, VERBOSE
from nat_traverse.model import ErrorKind, Generation, Rung
from nat_traverse.punch.machine import (
    AgreedPairAwaited,
    Connected,
    PathValidated,
    PeerHeard,
    PeerRefused,
    PortChanged,
    RungStarted,
)
from nat_traverse.session import Opened, PortChosen, SessionEvent
from nat_traverse.target import bracketed, other_side
from nat_traverse.tunnel.events import Proven
from nat_traverse.tunnel.plain import (
    DeliveryKnown,
    PeerClosed,
    PeerFinished,
    PeerRestarted,
    PeerVanished,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nat_traverse.api import Event as TunnelEvent
    from nat_traverse.carry.datagram_relay import DatagramEvent
    from nat_traverse.carry.relay import RelayEvent
    from nat_traverse.carry.stream_relay import StreamEvent
    from nat_traverse.carry.streams import ForwardEvent
    from nat_traverse.carry.vpn_events import VpnEvent
    from nat_traverse.cli.explain import Explanation
    from nat_traverse.cli.settings import Connect
    from nat_traverse.model import Endpoint, NetworkError, Path
    from nat_traverse.punch.evidence import Evidence, PathEvidence
    from nat_traverse.tunnel.proof import Outcome

EVENT_FIELDS: Final = (
    ("event", "What happened, one of the words below; the first field of every object."),
    ("elapsed", "Seconds since the program started, with milliseconds."),
    ("name", "Which tunnel it is about, with `nat-traverse up` only; the third field."),
    ("text", "The same in words, as the last field; these may change with any version."),
    ("opened", ("The sockets are open. `local_port`, `addresses` (our own), `peers` (all addresses"
     " that are tried), `other_side` (the command to run there).")),
    ("no-route", "One of the peer's addresses can't be reached from here. `peer`, `reason`."),
    ("left-out", "An address beyond the eight that are tried. `peer`."),
    ("trying", ("A strategy begins, or begins again. `strategy` (`direct`, `quiet`, `hop`, `spray`,"
     " `predict`), `again` (when it knocks next, on the clock of `elapsed`, or null).")),
    ("agreed-pair", ("A path over other ports works, and is used to bring up the agreed ones, which"
     " another program wants. `peer`, `silence` (seconds that this may take).")),
    ("heard", "The first message of the peer's. `peer`, `generation` (`current` or `0.7`)."),
    ("refused", ("A refusal of a kind not seen before. `peer`, `error`, `reporter` (an address, or"
     " null for this host itself).")),
    ("port-changed", "The peer's packets come from another port. `peer`, `actual`."),
    ("validated", "A path is open in both directions. `peer`, `round_trip` (seconds or null)."),
    ("connected", ("Both sides use this path. `peer`, `local_port`, `observed` (our address as the"
     " peer sees it, or null), `strategy` (as with `trying`), `agreed` (whether it is between the"
     " agreed ports), `round_trip`, `datagram_size` (bytes), `generation`, `encrypted`; if it is,"
     " `proof` (`secret`, `keys`, `secret and keys`, `code`), `code`, `peer_key` (or null).")),
    ("code", "What both users compare, where nothing else proves who is there. `code`."),
    ("plain", "The peer runs 0.7, so nothing is encrypted."),
    ("rejected", ("Somebody answered who could not prove to be the peer. `message`, `failures`"
     " (so far; the fifth ends the program).")),
    ("unfinished", "A path was found and no tunnel came of it; it is tried again. `message`."),
    ("held-up", ("This host has no way to the peer now: no network, or no name server. It is tried"
     " again. `message`.")),
    ("lost", ("With `--retry` or `--wireguard`: the path is lost, and another one is looked for."
     " `message`.")),
    ("wireguard-found", ("The device is in use already, and is watched, and kept open where it"
     " does not do that itself. `device`, `peer`.")),
    ("wireguard-up", "The device was brought up. `device`."),
    ("wireguard-endpoint", ("The device uses the path. `device`, `local_port`, `peer`, `keepalive`"
     " (seconds).")),
    ("wireguard-handshake", "WireGuard has proven the peer. `device`, `peer`."),
    ("wireguard-down", "The device was taken down. `device`."),
    ("moved", "The peer's address has changed, and it was followed. `peer`."),
    ("listening", "A forward is ready. `what`, `address` (the peer's, for `-R`)."),
    ("listening-ended", "The peer listens no more for this `-R`. `what`."),
    ("forward-refused", ("A connection or a listening was refused. `what`, `by_peer` (or by this"
     " side), `reason` (a word), `message`.")),
    ("forwarded", "A connection goes through. `what`, `client`."),
    ("vpn-up", ("Packets pass. `device`, `mtu`, `addresses`, `peers`, `routes`.")),
    ("vpn-resized", ("The path takes smaller packets than before, or larger ones again. `device`,"
     " `mtu`.")),
    ("vpn-dropped", ("At the end of a tunnel, if there are any: packets that did not pass. `counts`"
     " (an object with a number for each reason).")),
    ("too-large", "With `--datagrams`: one was not sent; told once. `size`, `limit` (bytes)."),
    ("running", "The command was started. `command`."),
    ("finished", "The peer sends no more. `sent`, `received` (bytes)."),
    ("delivered", "The peer has had the end of our data. `sent`, `received` (bytes)."),
    ("closed", "The peer ended the tunnel. `reason`."),
    ("vanished", "No sign of life from the peer. `errno`."),
    ("restarted", "Another run of the peer's program knocks; this tunnel is not meant."),
    ("overflowed", "Our output is read too slowly: datagrams are dropped."),
    ("explanation", ("Why there is no path; one object for each thing that was seen."
     " `code`, `seen`, `means`, `advice`.")),
    ("evidence", ("All that was seen, if no path was found. `paths` (objects with `peer`,"
     " `hellos_sent`, `hellos_received`, `acks_received`, `generation`, `validated`, `other_ports`,"
     " `errors`), `strategies` (that were begun besides direct), `ports_tried`, `openings_sent`,"
     " `refused_probes`, `elsewhere` (addresses), and numbers of datagrams that were ignored:"
     " `strangers`, `malformed`, `not_ours`, `reflected`, `stale`, `unwanted_legacy`.")),
    ("error", "It failed. `message`, `exit_code`."),
)  # fmt: skip
"""The documentation of `--json`: names, and what they mean. Names are never changed."""

# Strategies that a user hears of unasked, and only once. The others begin beside these.
_NEWS: Final = frozenset({Rung.QUIET, Rung.SPRAY})

# Of the evidence, in the order in which a reader wants them.
_COUNTERS: Final = (
    "ports_tried",
    "openings_sent",
    "refused_probes",
    "strangers",
    "malformed",
    "not_ours",
    "reflected",
    "stale",
    "unwanted_legacy",
)

_MILLISECOND = 1000

# How the user reads what has proven who is there.
_PROOFS: Final = {
    "code": "not proven by whom",
    "secret": "proven by the secret",
    "keys": "proven by keys",
    "secret and keys": "proven by the secret and keys",
}


class Report:
    """Tells what happens, in words.

    `started` is the time of the program's start on time.monotonic's clock. `verbosity` is QUIET,
    NORMAL or VERBOSE; errors are always told. `is_patient` is whether a network that is missing is
    waited for: once a tunnel has been there, and not before, when it may be the user's mistake.
    """

    def __init__(self, connect: Connect, *, started: float) -> None:
        self._connect = connect
        self._started = started
        self._local_port = connect.target.local_port
        self._path_port: int | None = None
        self._awaited = False
        self._begun: set[Rung] = set()
        self._path: Connected | None = None
        self._refusals: set[tuple[str, ErrorKind]] = set()
        self._status = ""
        self._deadline = connect.deadline
        self._held_up = ""
        self.is_patient = False

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    @property
    def agreed_port(self) -> int:
        """The local port that the peer was told, which is known once a socket is bound to it."""
        return self._local_port

    @property
    def other_side(self) -> str:
        """The command to be run on the other side, as far as it is known here."""
        target = self._connect.target
        if self._connect.wireguard is not None:
            return (
                f"nat-traverse --wireguard <file with ListenPort = {target.remote_port} and"
                f" Endpoint = <public address of this side>:{self._local_port}>"
            )
        return other_side(target, self._local_port, None)

    # -- what may happen ----------------------------------------------------------------------

    def observe(
        self,
        event: SessionEvent
        | RelayEvent
        | TunnelEvent
        | ForwardEvent
        | VpnEvent
        | DatagramEvent
        | StreamEvent,
    ) -> None:
        """Tell of one event of the session, the tunnel or the relay."""
        match event:
            case Opened():
                self._opened(event)
            case PortChosen(local_port):
                self._path_port = local_port
            case RungStarted(rung, until):
                self._trying(rung, until)
            case AgreedPairAwaited(path, silence):
                self._agreed_pair(str(path.remote), silence)
            case PeerHeard(path, generation):
                old = generation is Generation.LEGACY
                text = f"heard the peer at {path.remote}{', which runs 0.7' if old else ''}"
                self._tell("heard", text, peer=str(path.remote), generation=generation.value)
            case PeerRefused(path, error):
                self._refused(path.remote, error)
            case Connected():
                self._path = event
                if self._connect.is_plain:
                    self._connected(event)
            case _:
                self._observe_path(event)

    def _observe_path(self, event: object) -> None:
        match event:
            case PortChanged(path, actual):
                self._tell(
                    "port-changed",
                    f"the peer's packets come from port {actual.port}, not {path.remote.port}",
                    peer=str(path.remote),
                    actual=str(actual),
                )
            case PathValidated(path, round_trip):
                self._tell(
                    "validated",
                    f"the path to {path.remote} is open in both directions",
                    level=VERBOSE,
                    peer=str(path.remote),
                    round_trip=round_trip,
                )
            case _:
                self._observe_relay(event)

    def plain_after_all(self) -> None:
        """Tell that the tunnel is a plain one because the peer runs 0.7."""
        if self._path is not None and not self._connect.is_plain:
            self._connected(self._path)
            self._tell(
                "plain",
                "the other side runs 0.7, which can't encrypt: this tunnel can be read and forged"
                " on the way. Update the other side; or give --secret here to have it refused",
                level=QUIET,
            )

    def lost(self, text: str) -> None:
        """Tell that the tunnel is over and another one is wanted."""
        self._begun.clear()
        self._refusals.clear()
        self._deadline = None  # it was for the first one
        self.is_patient = True
        self._tell("lost", f"{text} Looking for a path again.", message=text)

    def held_up(self, text: str) -> None:
        """Tell that this host has no way to the peer at present; of each reason, once."""
        if text != self._held_up:
            self._held_up = text
            self._tell("held-up", f"{text} Trying again.", message=text)

    def searching(self) -> None:
        """Learn that a search begins, which is told by what is seen of it."""

    def found(self, what: object) -> None:
        """Take note of a link or a hole that was found; it is nothing to tell of."""
        del what
        self._held_up = ""

    def attach(self, part: str, tell: Callable[[], Mapping[str, object]]) -> None:
        """Take note of something whose state `nat-traverse status` shows under the name `part`."""

    def running(self, command: str) -> None:
        """Tell that the command starts."""
        self._tell("running", f"running: {command}", command=command)

    def wireguard(self, event: str, text: str, **fields: object) -> None:
        """Tell of the device of `--wireguard`."""
        self._tell(f"wireguard-{event}", f"wireguard: {text}", level=NORMAL, **fields)

    def failed(self, message: str, exit_code: int) -> None:
        """Tell why the program ends without success."""
        self._tell("error", message, level=QUIET, message=message, exit_code=exit_code)

    def explained(self, explanations: list[Explanation]) -> None:
        """Tell why no path was found."""
        for each in explanations:
            lines = (each.seen, f"  This means: {each.means}", f"  Try: {each.advice}")
            self._tell("explanation", "\n".join(lines), level=QUIET, **each._asdict())

    def evidence(self, seen: Evidence) -> None:
        """Tell what the explanations are made from, to whoever wants to draw other conclusions."""
        fields = {
            "paths": [_path_data(path, each) for path, each in seen.paths.items()],
            "strategies": [rung.value for rung in seen.rungs],
            "elsewhere": seen.elsewhere,
            **{name: getattr(seen, name) for name in _COUNTERS},
        }
        counted = ", ".join(f"{name.replace('_', ' ')} {fields[name]}" for name in _COUNTERS)
        self._tell("evidence", f"counted: {counted}", level=VERBOSE, **fields)

    def waiting(self) -> None:
        """Show, on a terminal, that it is still trying; called once a second."""

    # -- how it is told -----------------------------------------------------------------------

    def _tell(self, event: str, text: str, *, level: int = NORMAL, **fields: object) -> None:
        """Write one line, if the user wants this much. `fields` are for other forms of report."""
        del event, fields
        if level > self._connect.verbosity:
            return
        if level == QUIET:
            self._write(f"nat-traverse: {text}\n")
        else:
            self._write(f"{self.elapsed:7.2f} s  {text}\n")

    def _write(self, text: str) -> None:
        complaint.write(text)

    # -- the longer stories -------------------------------------------------------------------

    def _opened(self, event: Opened) -> None:
        self._local_port = event.local_port
        self._path_port = None
        peers = ", ".join(map(str, event.remotes))
        sources = " and ".join(bracketed(source.host) for source in event.sources)
        self._tell(
            "opened",
            f"UDP port {event.local_port} ({sources} here) to {peers}\n"
            f"           run on the other side: {self.other_side}",
            local_port=event.local_port,
            addresses=[source.host for source in event.sources],
            peers=[str(remote) for remote in event.remotes],
            other_side=self.other_side,
        )
        for remote, reason in event.unreachable:
            text = f"not trying {remote}: {reason}"
            self._tell("no-route", text, level=VERBOSE, peer=str(remote), reason=reason)
        for remote in event.left_out:
            text = f"not trying {remote}: the name has too many addresses"
            self._tell("left-out", text, peer=str(remote))

    def _trying(self, rung: Rung, until: float | None) -> None:
        """Tell of a strategy; of one that begins again with every minute, only the first time."""
        level = NORMAL if rung in _NEWS and rung not in self._begun else VERBOSE
        self._begun.add(rung)
        when = "" if until is None else f" at {_wall_clock(until)}"
        self._tell(
            "trying",
            self._strategy(rung) + when,
            level=level,
            strategy=rung.value,
            again=None if until is None else round(until - self._started, 3),
        )

    def _strategy(self, rung: Rung) -> str:
        """Say what a strategy does, in words that a time can follow."""
        match rung:
            case Rung.DIRECT:
                return "trying the agreed ports"
            case Rung.QUIET if self._answers_for_itself:
                return "the other gateway answers for itself; trying again"
            case Rung.QUIET:
                return (
                    "no answer yet; keeping still, in case the other gateway took our packets for"
                    " its own; trying again"
                )
            case Rung.HOP:
                return "trying fresh ports"
            case Rung.SPRAY:
                return "looking for the port of a gateway that changes ports"
            case Rung.PREDICT:
                return "looking for it near the ports that were seen"

    @property
    def _answers_for_itself(self) -> bool:
        return any(kind is ErrorKind.PORT_UNREACHABLE for _, kind in self._refusals)

    def _agreed_pair(self, peer: str, silence: float) -> None:
        text = "bringing up the agreed ports"
        if not self._awaited:
            text = f"found a way over other ports (to {peer}); bringing up the agreed ones"
        self._awaited = True
        if silence > 0:
            text += (
                f", which takes up to {silence:.0f} s, because a gateway has to forget what it took"
                " for its own"
            )
        self._tell("agreed-pair", text, peer=peer, silence=silence)

    def _refused(self, remote: Endpoint, error: NetworkError) -> None:
        peer = str(remote)
        # A search meets the same refusal at many ports of one host.
        known = (remote.host, error.kind) in self._refusals
        self._refusals.add((remote.host, error.kind))
        if error.kind is ErrorKind.TIME_EXCEEDED:
            text = f"an opening packet to {peer} ended at {error.reporter}, as it should"
            level = VERBOSE
        else:
            who = error.reporter or "this host"
            text = f"{who} refuses packets to {peer}: {error.kind.value}; still trying"
            level = VERBOSE if known else NORMAL
        self._tell(
            "refused", text, level=level, peer=peer, error=error.kind.value, reporter=error.reporter
        )

    def _proven(self, outcome: Outcome) -> None:
        """Tell that both sides have an encrypted tunnel, and who is at the other end."""
        proof = outcome.means
        from nat_traverse.tunnel.keys import encode_public  # noqa: PLC0415 (--plain has none)

        key = None if outcome.peer_key is None else encode_public(outcome.peer_key)
        if self._path is not None:
            words = f"encrypted, {_PROOFS[proof]}"
            self._connected(self._path, words, proof=proof, code=outcome.code, peer_key=key)
        if outcome.code is not None:
            self._tell(
                "code",
                "it is not proven who is there. To be sure, compare this code with the other side,"
                f" by telephone for example: {outcome.code}\n"
                "           (with the same --secret on both sides it is proven)",
                code=outcome.code,
            )

    def _connected(self, event: Connected, words: str = "not encrypted", **proof: object) -> None:
        remote = event.path.remote
        old = event.generation is Generation.LEGACY
        observed = event.observed
        here = "" if observed is None else f", which sees us as {observed}"
        port = self._local_port if self._path_port is None else self._path_port
        text = f"connected: port {port} to {remote}{here}, {event.rung.value}"
        if event.round_trip is not None:
            text += f", round trip {event.round_trip * _MILLISECOND:.1f} ms"
        text += f", {words}, peer speaks {'0.7' if old else 'protocol 1'}"
        self._tell(
            "connected",
            text,
            level=NORMAL,
            peer=str(remote),
            local_port=port,
            observed=None if observed is None else str(observed),
            strategy=event.rung.value,
            # A spare pair of ports counts as agreed for the search, and not for the user.
            agreed=event.agreed and self._path_port in (None, self._local_port),
            round_trip=event.round_trip,
            datagram_size=event.datagram_size,
            generation=event.generation.value,
            encrypted=bool(proof),
            **proof,
        )

    def _observe_relay(self, event: object) -> None:
        match event:
            case PeerFinished(sent, received):
                self._tell(
                    "finished",
                    f"the peer has sent all: {received.octets:,} bytes arrived",
                    level=VERBOSE,
                    sent=None if sent is None else sent.octets,
                    received=received.octets,
                )
            case DeliveryKnown(sent, received):
                self._tell(
                    "delivered",
                    f"the peer has received {received.octets:,} of {sent.octets:,} bytes",
                    level=VERBOSE,
                    sent=sent.octets,
                    received=received.octets,
                )
            case PeerClosed(reason, _):
                word = reason.name.lower().replace("_", " ")
                text = f"the peer ended the tunnel: {word}"
                self._tell("closed", text, level=VERBOSE, reason=word)
            case PeerVanished(number):
                text = "no sign of life from the peer"
                self._tell("vanished", text, level=VERBOSE, errno=number)
            case PeerRestarted():
                self._tell(
                    "restarted",
                    "another run of nat-traverse knocks from the peer's address: if the other side"
                    " was restarted, restart this one too",
                )
            case OutputOverflowed():
                self._tell(
                    "overflowed",
                    "standard output is read more slowly than the peer sends: what does not fit"
                    " into 16 MiB of memory is lost",
                )
            case _ if not self._connect.is_plain:
                self._observe_tunnel(event)

    def _observe_tunnel(self, event: object) -> None:
        """Tell of what only an encrypted tunnel knows; most of its modules are slow to import."""
        if isinstance(event, Proven):
            self._proven(event.outcome)
            return
        from nat_traverse.cli.tunnel_words import tunnel_words  # noqa: PLC0415 (see above)

        told = tunnel_words(event)
        if told is not None:
            self._tell(told.event, told.text, level=told.level, **told.fields)


def _path_data(path: Path, seen: PathEvidence) -> dict[str, object]:
    return {
        "peer": str(path.remote),
        "hellos_sent": seen.hellos_sent,
        "hellos_received": seen.hellos_received,
        "acks_received": seen.acks_received,
        "generation": None if seen.generation is None else seen.generation.value,
        "validated": seen.validated,
        "other_ports": seen.other_ports,
        "errors": [
            {"error": kind.value, "reporter": reporter, "count": count}
            for (kind, reporter), count in seen.errors.items()
        ],
    }


def _wall_clock(at: float) -> str:
    """Spell a time of time.monotonic's clock as a clock on the wall shows it, to the second."""
    # Minutes begin where the machine says; a microsecond before is not the minute before.
    return time.strftime("%H:%M:%S", time.localtime(round(time.time() + at - time.monotonic())))


class JsonReport(Report):
    """Tells the same as one JSON object a line, whatever the verbosity."""

    def _tell(self, event: str, text: str, *, level: int = NORMAL, **fields: object) -> None:
        del level
        words = "\n".join(line.strip() for line in text.split("\n"))
        line = {"event": event, "elapsed": round(self.elapsed, 3), **fields, "text": words}
        self._write(json.dumps(line) + "\n")


class TerminalReport(Report):
    """Tells the same, and keeps one live line below that says that it is still trying."""

    def waiting(self) -> None:
        """Renew the live line."""
        if self._connect.verbosity < NORMAL:
            return
        left = ""
        if self._deadline is not None:
            left = f", giving up in {max(0, self._deadline - self.elapsed):.0f} s"
        self._show(f"{self.elapsed:7.0f} s  trying{left}")

    def clear(self) -> None:
        """Remove the live line."""
        self._show("")

    def _tell(self, event: str, text: str, *, level: int = NORMAL, **fields: object) -> None:
        self.clear()
        super()._tell(event, text, level=level, **fields)

    def _show(self, text: str) -> None:
        if text or self._status:
            # Carriage return, then "erase to the end of the line" (ECMA-48).
            self._write(f"\r\x1b[K{text}")
        self._status = text


def make_report(connect: Connect, *, started: float) -> Report:
    """Return the report that the user asked for, or that suits where standard error leads."""
    if connect.json:
        return JsonReport(connect, started=started)
    if sys.stderr is not None and sys.stderr.isatty():
        return TerminalReport(connect, started=started)
    return Report(connect, started=started)
