"""PPP over nat-traverse, as the manual of 0.7 shows it, word for word.

In a guest kernel, because few machines' own has PPP, with 20 ms of delay each way.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.tools import need
from support.uml import run_in_uml

ORIGINAL = "/usr/bin/nat-traverse"
OURS = str(Path(sys.prefix) / "bin" / "nat-traverse")

# Arguments: what `nat-traverse` is on the left and on the right, and options that the manual of 0.7
# does not have. The names are the manual's.
#
# 0.7 gives up when it is refused, and as no gateway swallows its packets here, it is as long as the
# other side has no socket. So it goes last, when the other one has its own.
#
# Neither command ends: `updetach` lets a pppd on a serial line go on in the background once the
# link is up, but not one that was told `notty`.
GUEST = r"""
for side in left right; do
  mkdir "/run/$side"
  ip netns add $side
  ip -n $side link set lo up
done
ln -s "$1" /run/left/nat-traverse
ln -s "$2" /run/right/nat-traverse
ip link add name left netns left type veth peer name right netns right
ip -n left address add 198.51.100.1/24 dev left
ip -n right address add 198.51.100.2/24 dev right
for side in left right; do
  ip -n $side link set $side up
  tc -n $side qdisc add dev $side root netem delay 20ms
done
printf '127.0.0.1 localhost\n198.51.100.1 natgw-of-left\n198.51.100.2 natgw-of-right\n' >/run/hosts
mount --bind /run/hosts /etc/hosts

on() { # SIDE COMMAND [ARG ...]
  local side=$1
  shift
  PATH="/run/$side:$PATH" ip netns exec "$side" "$@"
}

# shellcheck disable=SC2086  # no option at all, or one
start_left() { # OPTION
  on left nat-traverse $1 \
    --cmd="pppd updetach noauth passive notty ipparam vpn 10.0.0.1:10.0.0.2" \
    40000:natgw-of-right:40001 >"$OUT/left" 2>&1 &
}
# shellcheck disable=SC2086
start_right() { # OPTION
  on right nat-traverse $1 --cmd="pppd nodetach notty noauth" \
    40001:natgw-of-left:40000 >"$OUT/right" 2>&1 &
}
await_socket() { # SIDE PORT
  until ip netns exec "$1" grep -qi ":$(printf %04x "$2") " /proc/net/udp; do
    ((SECONDS < 60))
    sleep 0.1
  done
}
if [[ $2 == /usr/bin/nat-traverse ]]; then
  start_left "${3-}"
  await_socket left 40000
  start_right "${3-}"
else
  start_right "${3-}"
  await_socket right 40001
  start_left "${3-}"
fi

has() { # SIDE TEXT
  ip -n "$1" address show dev ppp0 2>/dev/null | grep -q "$2"
}
until has left "10.0.0.1 peer 10.0.0.2" && has right "10.0.0.2 peer 10.0.0.1"; do
  [[ $(jobs -r | wc -l) == 2 ]] # both commands still run
  ((SECONDS < 90))
  sleep 0.2
done
on left ping -c 3 10.0.0.2
"""


@pytest.mark.parametrize(
    ("left", "right"),
    [(ORIGINAL, ORIGINAL), (OURS, OURS), (OURS, ORIGINAL), (ORIGINAL, OURS)],
    ids=["old-old", "new-new", "new-old", "old-new"],
)
def test_ppp_as_in_the_manual_of_the_original(left: str, right: str, tmp_path: Path) -> None:
    check(tmp_path, left, right)


def test_ppp_over_datagrams(tmp_path: Path) -> None:
    check(tmp_path, OURS, OURS, "--datagrams")


def check(tmp_path: Path, left: str, right: str, *options: str) -> None:
    """See that a packet of each side's reaches the other through PPP."""
    need(ORIGINAL, package="nat-traverse")
    need("pppd", package="ppp")
    need("ping", package="iputils-ping")
    result = run_in_uml(GUEST, left, right, *options, out_dir=tmp_path, timeout=120)
    told = "".join(
        f"--- {side}\n{path.read_text()}"
        for side in ("left", "right")
        if (path := tmp_path / side).exists()
    )
    assert result.returncode == 0, result.stdout + result.stderr + told
    assert "3 packets transmitted, 3 received, 0% packet loss" in result.stdout
