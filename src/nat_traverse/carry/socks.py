"""-D: a SOCKS server whose connections come out on the other side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nat_traverse.carry.calling import Connection
from nat_traverse.carry.streams import LINK_DOWN, reset
from nat_traverse.errors import RemoteProtocolError
from nat_traverse.wire.request import Address, Connect, Kind, Refused, Word
from nat_traverse.wire.socks import (
    VERSION_4,
    Code,
    Command,
    UnsupportedAddressError,
    decode_greeting,
    decode_request,
    encode_choice,
    encode_refusal_4,
    encode_reply,
)

if TYPE_CHECKING:
    from nat_traverse.carry.streams import Traffic

_CODES: Final = {
    Word.NOT_EXPOSED: Code.NOT_ALLOWED,
    Word.UNREACHABLE: Code.HOST_UNREACHABLE,
    Word.REFUSED: Code.CONNECTION_REFUSED,
    Word.UNKNOWN_HOST: Code.HOST_UNREACHABLE,
    Word.DENIED: Code.NOT_ALLOWED,
    Word.BUSY: Code.FAILED,
    Word.MALFORMED: Code.FAILED,
}


class SocksConnection(Connection):
    """A client of -D: greeting, request, and then a connection as any other."""

    def __init__(self, traffic: Traffic, what: str) -> None:
        super().__init__(traffic, what, None)
        self._option = what
        self._data = bytearray()
        self._greeted = False
        self._asked = False

    def begin(self) -> None:
        """Wait for the greeting."""

    def data_received(self, data: bytes) -> None:
        """Read the greeting and the request; what comes behind is for the other side."""
        self._data += data
        if self._asked:
            return
        try:
            self._read()
        except UnsupportedAddressError as error:
            self._give_up(encode_reply(Code.ADDRESS_NOT_SUPPORTED), str(error))
        except RemoteProtocolError as error:
            self._give_up(self._farewell(), f"what the program speaks is not SOCKS 5: {error}")

    def eof_received(self) -> bool:
        """Without a request, that is the end; else the splice will see it again."""
        return self._asked

    def accepted(self) -> None:
        """Say so, and hand on what the client has sent since."""
        self.transport.write(encode_reply(Code.SUCCEEDED))
        self.early = bytes(self._data)

    def refused(self, refused: Refused) -> None:
        """Say why, in the words that SOCKS has."""
        code = Code.NETWORK_UNREACHABLE if refused is LINK_DOWN else _CODES[refused.word]
        self.transport.write(encode_reply(code))
        self.transport.close()

    def _read(self) -> None:
        if not self._greeted:
            greeting = decode_greeting(self._data)
            if greeting is None:
                return
            methods, size = greeting
            del self._data[:size]
            answer, self._greeted = encode_choice(methods)
            if not self._greeted:
                self._give_up(answer, "the program insists on logging in")
                return
            self.transport.write(answer)
        found = decode_request(self._data)
        if found is None:
            return
        request, size = found
        del self._data[:size]
        self._asked = True
        if request.command != Command.CONNECT:
            self._give_up(encode_reply(Code.COMMAND_NOT_SUPPORTED), "it can only connect")
            return
        address = Address(Kind.TCP, request.host, request.port)
        self._what = f"{self._option} to {address.place}"
        self.call(Connect(address))

    def _farewell(self) -> bytes:
        """Return what a client reads that does not speak as it should: nothing, for most."""
        if self._greeted:
            return encode_reply(Code.FAILED)
        return encode_refusal_4() if self._data[:1] == bytes([VERSION_4]) else b""

    def _give_up(self, answer: bytes, why: str) -> None:
        self._asked = True
        self._traffic.refused_here(self._option, Refused(Word.MALFORMED, why))
        if answer:
            self.transport.write(answer)
            self.transport.close()
        else:
            reset(self.transport)
