"""Tunnels that are described in files, run by `nat-traverse up`, and asked how they are."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from support.lab import eventually
from support.leftovers import Mark
from support.programs import OURS, PATIENCE, Program

if TYPE_CHECKING:
    from pathlib import Path

    from nat_traverse.lab import Node

PHRASE = "and all that"


class Services:
    """A directory with descriptions, and one with the sockets of those that run.

    With it end all programs that were started; then nothing may be left of them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = directory / "run"
        self.mark = Mark()
        self._programs = ExitStack()
        self._started: list[Program] = []
        (directory / "nat-traverse").mkdir()
        secret = directory / "nat-traverse" / "secret"
        secret.write_text(PHRASE)
        secret.chmod(0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._programs.__exit__(kind, *rest)  # type: ignore[arg-type]  # as they came
        if kind is None:
            self.mark.gone()

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.mark.environment,
            "XDG_CONFIG_HOME": str(self.directory),
            "RUNTIME_DIRECTORY": str(self.run),
        }

    @property
    def left_over(self) -> list[str]:
        """The sockets and locks that there are."""
        return sorted(each.name for each in self.run.iterdir()) if self.run.exists() else []

    def describe(self, name: str, connect: str, *lines: str, proof: str = "secret") -> Path:
        """Write a description; relative names in it count from its directory."""
        path = self.directory / "nat-traverse" / f"{name}.toml"
        rest = "".join(f"{line}\n" for line in lines)
        path.write_text(f'connect = "{connect}"\nsecret-file = "{proof}"\n{rest}')
        return path

    def up(
        self,
        *words: str,
        node: Node | None = None,
        before: tuple[str, ...] = (),
        program: tuple[str, ...] = (OURS,),
        env: dict[str, str] | None = None,
    ) -> Program:
        """Start `nat-traverse up`."""
        argv = [*before, *program, "up", *words]
        started = Program(argv, node, env={**self.environment, **(env or {})})
        self._started.append(started)
        return self._programs.enter_context(started)

    def status(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `nat-traverse status`."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            [OURS, "status", *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def ask(self, name: str) -> dict[str, Any]:
        """Return what one tunnel says of itself; empty, if it does not run.

        As `nat-traverse status` does it, but for the half second that a program takes to start.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(PATIENCE)
            try:
                sock.connect(f"{self.run}/{name}.sock")
            except OSError:
                return {}
            answer = b""
            while part := sock.recv(65536):
                answer += part
        told = json.loads(answer)
        assert isinstance(told, dict)
        return told

    def comes_to(self, name: str, state: str) -> dict[str, Any]:
        """Wait until a tunnel has this state, and return what it says then."""
        try:
            eventually(lambda: self.ask(name).get("state") == state, f"{name} to be {state}")
        except AssertionError as error:
            said = "\n".join(each.errors for each in self._started)
            raise AssertionError(
                f"{error}; it is {self.ask(name)}, and was said:\n{said}"
            ) from None
        return self.ask(name)


def passes(listen: int, target: int) -> bool:
    """Tell whether bytes go through a forward and back, on this machine."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", target)))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", listen), 10))
        client.sendall(b"there")
        server.settimeout(10)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(10)
            assert accepted.recv(100) == b"there"
            accepted.sendall(b"back")
            client.settimeout(10)
            return client.recv(100) == b"back"
