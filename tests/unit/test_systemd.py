"""The unit for systemd: it is well-formed, it gives few rights away, and with these all works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nat_traverse.cli.description import read_description
from nat_traverse.errors import EXIT_USAGE
from support.ends import free_ports
from support.forwards import unused_port
from support.ordinary import NOBODY, RESTRICTED, only, ordinary
from support.programs import OURS
from support.services import Services, passes
from support.tools import need

DOCS = Path(__file__).parents[2] / "docs"
UNIT = DOCS / "systemd" / "nat-traverse@.service"

# Of 100, what systemd-analyze thinks that a service could do to a system. Full rights are 96; what
# remains is mostly that it is about networks.
MOST_EXPOSED = 25

NET_ADMIN = 1 << 12  # capabilities(7)


def settings(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def test_systemd_understands_it(tmp_path: Path) -> None:
    """An instance of it, with the program where it is: systemd looks for that, too."""
    text = UNIT.read_text().replace("/usr/bin/nat-traverse", OURS)
    unit = tmp_path / "nat-traverse@home.service"
    unit.write_text(text)
    run = subprocess.run(
        [need("systemd-analyze", package="systemd"), "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout + run.stderr == ""
    assert run.returncode == 0


def test_it_gives_few_rights_away(tmp_path: Path) -> None:
    unit = tmp_path / "nat-traverse@home.service"
    shutil.copy(UNIT, unit)
    program = need("systemd-analyze", package="systemd")
    run = subprocess.run(
        [program, "security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_what_does_not_heal_is_not_started_again() -> None:
    """A port of a forward that is in use heals, and no unit has another one's names."""
    assert settings("RestartPreventExitStatus") == [str(EXIT_USAGE)]


def test_the_start_of_the_machine_does_not_wait_for_the_other_side() -> None:
    (limit,) = settings("TimeoutStartSec")
    assert 10 <= int(limit) <= 90


def test_its_advice_is_a_description(tmp_path: Path) -> None:
    lines = re.findall(r"^# {5}(secret-file = .*)$", UNIT.read_text(), re.MULTILINE)
    path = tmp_path / "home.toml"
    path.write_text("\n".join(['connect = "1:h:2"', 'expose = "any"', *lines]))
    path.chmod(0o644)
    connect = read_description(str(path), {"CREDENTIALS_DIRECTORY": "/run/credentials/x"})
    (credential,) = [each for each in settings("LoadCredential") if each.startswith("secret:")]
    assert connect.secret_file == f"/run/credentials/x/{credential.partition(':')[0]}"


@pytest.mark.parametrize("capabilities", [("net_admin",), ()])
def test_a_tunnel_works_with_its_rights(capabilities: tuple[str, ...]) -> None:
    """What of it can be had without systemd: another user, capabilities, no new privileges, memory.

    A filter of system calls can't be.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can give rights away")
    ports, listen, target = free_ports(), unused_port(), unused_port()
    with ordinary(*only(*capabilities)) as (python, environment):
        directory = Path(environment["PYTHONPATH"], "service")
        directory.mkdir()
        with Services(directory) as services:
            services.describe(
                "one", f"{ports[0]}:127.0.0.1:{ports[1]}", f'L = "{listen}:127.0.0.1:{target}"'
            )
            services.describe("two", f"{ports[1]}:127.0.0.1:{ports[0]}", 'expose = "any"')
            for path in (directory, *directory.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            services.up("one", "two", program=(*python, "-c", RESTRICTED), env=environment)
            services.comes_to("one", "connected")
            told = services.comes_to("two", "connected")
            status = Path(f"/proc/{told['pid']}/status").read_text()
            fields = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
            assert fields["Uid"].split() == [str(NOBODY)] * 4
            assert fields["NoNewPrivs"] == "1"
            has = f"{NET_ADMIN if capabilities else 0:016x}"
            assert {fields[name] for name in ("CapBnd", "CapEff", "CapAmb")} == {has}
            assert passes(listen, target)
