"""What the network may bring: strategies for datagrams, errors and the passing of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from nat_traverse.model import Endpoint, ErrorKind, NetworkError, Path
from nat_traverse.punch.machine import Effect, Send
from nat_traverse.wire.hello import (
    ACK_MAGIC,
    HELLO_MAGIC,
    HELLO_SIZE,
    MAGIC_PREFIX,
    Agreed,
    Counts,
    Kind,
    Message,
    Mode,
    Reason,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PEER = Endpoint("203.0.113.2", 40001)
PEER_IPV6 = Endpoint("2001:db8::2", 40001)
OTHER_HOST = Endpoint("192.0.2.77", 40001)
SAME_HOST_OTHER_PORT = PEER._replace(port=61234)

DIRECT = Path(0, PEER)
SECOND = Path(1, PEER_IPV6)
PATHS = (DIRECT, SECOND)
STRANGE_PATHS = (
    Path(0, OTHER_HOST),
    Path(0, SAME_HOST_OTHER_PORT),
    Path(1, PEER),
    Path(0, PEER_IPV6),
    Path(0, PEER._replace(scope=3)),
)

counts = st.builds(Counts, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
small_counts = st.builds(Counts, st.integers(0, 3), st.integers(0, 3))
endpoints = st.builds(Endpoint, st.ip_addresses().map(str), st.integers(0, 65535), scope=st.just(0))


_FIELDS: dict[str, st.SearchStrategy[object]] = {
    "nominate": st.just(True),
    "done": st.just(True),
    "mark": st.just(True),
    "serial": st.integers(0, 4) | st.just(2**32 - 1),
    "observed": endpoints,
    "mode": st.sampled_from(Mode),
    "finished": small_counts | counts,
    "received": small_counts | counts,
    "closing": st.sampled_from(Reason),
    "round_trip": st.integers(0, 2**32 - 1),
    "room": st.sampled_from([0, 1, 65_536, 2**32 - 1]),
    "astray": st.just(True),
    "agreed": st.sampled_from(Agreed),
}


@st.composite
def messages(draw: st.DrawFn, nonces: Sequence[bytes], echoes: Sequence[bytes | None]) -> Message:
    """Return a message of the owner of one of `nonces`, in answer to one of `echoes`.

    Half of them have two fields at most: most of what a machine does hangs on one.
    """
    few = st.sets(st.sampled_from(sorted(_FIELDS)), max_size=2)
    many = st.sets(st.sampled_from(sorted(_FIELDS)))
    names = draw(few | many)
    fields: dict[str, Any] = {name: draw(_FIELDS[name]) for name in sorted(names)}
    kind, nonce = draw(st.sampled_from(Kind)), draw(st.sampled_from(nonces))
    return Message(kind, nonce, echo=draw(st.sampled_from(echoes)), **fields)


sizes = st.sampled_from([0, 0, HELLO_SIZE, HELLO_SIZE, 548, 1232, 1400, 9000])


@st.composite
def mutated(draw: st.DrawFn, wholes: st.SearchStrategy[bytes]) -> bytes:
    """Return something that was a message once: bytes changed, put in, taken out, cut off."""
    data = bytearray(draw(wholes))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "insert", "delete", "cut", "repeat"])):
            case "change" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "delete":
                del data[at : at + draw(st.integers(1, 8))]
            case "cut":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 24))]
            case _:
                pass
    return bytes(data)


noise = st.one_of(
    st.just(b""),
    st.binary(max_size=64),
    st.integers(1, 9000).map(bytes),
    st.binary(max_size=40).map(lambda rest: MAGIC_PREFIX + rest),
    st.binary(max_size=60).map(lambda rest: HELLO_MAGIC + rest),
    st.binary(max_size=60).map(lambda rest: ACK_MAGIC + rest),
)
bare = st.sampled_from([HELLO_MAGIC, ACK_MAGIC])


def datagrams(
    nonces: Sequence[bytes], echoes: Sequence[bytes | None], *, legacy: bool = True
) -> st.SearchStrategy[bytes]:
    """Anything at all, and rather often something that is nearly right."""
    valid = st.builds(lambda m, size: encode(m, size=size), messages(nonces, echoes), sizes)
    others = [valid, valid, mutated(valid), noise]
    return st.one_of(*others, bare) if legacy else st.one_of(*others)


errors = st.builds(
    NetworkError,
    kind=st.sampled_from(ErrorKind),
    errno=st.integers(0, 133),
    reporter=st.none() | st.ip_addresses().map(str),
    mtu=st.integers(0, 70_000),
)

# Mostly the steps of an ordinary run; sometimes the machine slept for a night.
pauses = st.one_of(
    *[st.sampled_from([0.0, 1e-9, 1e-4, 0.02, 0.1, 0.5, 1.0])] * 6,
    *[st.floats(0, 3.0)] * 3,
    st.sampled_from([30.0, 45.0, 3600.0, 1e6]),
)
starts = st.sampled_from([0.0, 0.1, 12345.678, 1e6 / 3, 1e9 + 0.1])


def only_sends(effects: Iterable[Effect]) -> list[Send]:
    """Return what is to be sent; without a ladder, nothing is opened or closed."""
    found = list(effects)
    sends = [effect for effect in found if isinstance(effect, Send)]
    assert sends == found
    return sends
