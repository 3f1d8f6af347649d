"""The words for what happens in an encrypted tunnel; apart, since its modules are slow to import.

A terminal obeys what it is sent. The few texts of a peer's in an event were escaped when it was
made, where it is known which words are a peer's (`carry.streams`); and nothing else is told.
"""

from __future__ import annotations

from typing import NamedTuple

from nat_traverse.api import MOST_FAILURES, Rejected, Unfinished
from nat_traverse.carry.datagram_relay import DatagramsDropped, DatagramTooLarge
from nat_traverse.carry.stream_relay import AllArrived, AllDelivered
from nat_traverse.carry.streams import Forwarded, ForwardRefused, Listening, ListeningEnded
from nat_traverse.carry.vpn_events import VpnDropped, VpnResized, VpnUp
from nat_traverse.cli.settings import NORMAL, VERBOSE
from nat_traverse.tunnel.events import Closing, PathChanged, PeerClosed, PeerVanished


class Told(NamedTuple):
    """One line of a report."""

    event: str
    text: str
    level: int
    fields: dict[str, object]


def tunnel_words(event: object) -> Told | None:
    """Return what the user is told of an event; None if it is nothing to him."""
    for words in (_of_proof, _of_forward, _of_vpn, _of_tunnel, _of_data):
        told = words(event)
        if told is not None:
            return told
    return None


def _of_proof(event: object) -> Told | None:
    match event:
        case Rejected(error, failures):
            text = f"{error} Failed attempts: {failures} of {MOST_FAILURES}; waiting for the next."
            return Told("rejected", text, NORMAL, {"message": str(error), "failures": failures})
        case Unfinished(message):
            text = f"{message} Trying again."
            return Told("unfinished", text, NORMAL, {"message": message})
    return None


def _of_forward(event: object) -> Told | None:
    match event:
        case Listening(what, address):
            text = f"{what}: listening on {address}"
            return Told("listening", text, NORMAL, {"what": what, "address": address})
        case ListeningEnded(what):
            text = f"{what}: the other side listens no more"
            return Told("listening-ended", text, NORMAL, {"what": what})
        case ForwardRefused(what, by_peer, word, message):
            who = "the other side" if by_peer else "this side"
            fields: dict[str, object] = {"what": what, "by_peer": by_peer, "reason": word.value}
            text = f"{what}: refused by {who}: {message}"
            return Told("forward-refused", text, NORMAL, {**fields, "message": message})
        case Forwarded(what, client):
            text = f"{what}: a connection from {client}"
            return Told("forwarded", text, VERBOSE, {"what": what, "client": client})
    return None


def _of_vpn(event: object) -> Told | None:
    match event:
        case VpnUp(device, mtu, addresses, peers, routes):
            here, there = " and ".join(addresses), " and ".join(peers)
            more = f", and {', '.join(routes)} behind it" if routes else ""
            text = f"{device} is up: {here} here, {there} there{more}; MTU {mtu}"
            fields: dict[str, object] = {"device": device, "mtu": mtu, "addresses": addresses}
            return Told("vpn-up", text, NORMAL, {**fields, "peers": peers, "routes": routes})
        case VpnResized(device, mtu):
            text = f"the path takes other sizes than before: the MTU of {device} is {mtu} now"
            return Told("vpn-resized", text, NORMAL, {"device": device, "mtu": mtu})
        case VpnDropped(counts):
            words = ", ".join(f"{word} {count}" for word, count in sorted(counts.items()))
            return Told("vpn-dropped", f"did not pass: {words}", NORMAL, {"counts": counts})
    return None


def _of_tunnel(event: object) -> Told | None:
    match event:
        case PathChanged(path):
            peer = str(path.remote)
            return Told("moved", f"the peer is at {peer} now; following it", NORMAL, {"peer": peer})
        case PeerClosed(code, _):
            known = code in set(Closing)
            word = Closing(code).name.lower().replace("_", " ") if known else f"code {code}"
            return Told("closed", f"the peer ended the tunnel: {word}", VERBOSE, {"reason": word})
        case PeerVanished(number):
            return Told("vanished", "no sign of life from the peer", VERBOSE, {"errno": number})
    return None


def _of_data(event: object) -> Told | None:
    match event:
        case AllArrived(octets):
            text = f"the peer has sent all: {octets:,} bytes arrived"
            return Told("finished", text, VERBOSE, {"sent": None, "received": octets})
        case AllDelivered(octets):
            text = f"the peer has received {octets:,} of {octets:,} bytes"
            return Told("delivered", text, VERBOSE, {"sent": octets, "received": octets})
        case DatagramTooLarge(size, limit):
            text = f"a datagram of {size} bytes was not sent: the path takes {limit} at most"
            return Told("too-large", text, NORMAL, {"size": size, "limit": limit})
        case DatagramsDropped():
            text = "our output is read more slowly than the peer sends: datagrams are lost"
            return Told("overflowed", text, NORMAL, {})
    return None
