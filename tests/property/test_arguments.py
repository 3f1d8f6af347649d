"""Any words at all on the command line: settings, or one clear complaint."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nat_traverse.cli.arguments import ShowHelp, ShowVersion, parse
from nat_traverse.cli.options import COMMANDS, TUNNEL
from nat_traverse.cli.settings import Connect, Demo, Keygen, Status, Up
from nat_traverse.errors import UsageError

names = st.sampled_from([option.name for option in TUNNEL.options])
anything = st.text(st.characters(exclude_categories=()), max_size=20)
words = st.one_of(
    anything,
    names.map(lambda name: f"--{name}"),
    st.builds(lambda name, cut: f"-{name[:cut]}", names, st.integers(0, 5)),
    st.builds(lambda name, value: f"--{name}={value}", names, anything),
    st.integers().map(str),
    st.builds(
        lambda name, value: f"--{name}={value}",
        st.sampled_from(["vpn", "route", "announce"]),
        st.one_of(
            st.ip_addresses().map(str),
            st.builds(lambda at, bits: f"{at}/{bits}", st.ip_addresses(), st.integers(-1, 129)),
        ),
    ),
    st.sampled_from(["40000:192.0.2.1:40001", "1:::1:2", "0:h:65536", "--", "-", "+", *COMMANDS]),
    st.builds(lambda *parts: ":".join(parts), st.integers().map(str), anything, anything),
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(words, max_size=6), st.booleans())
@example(["--timeout=" + "9" * 5000, "1:h:2"], False)
@example(["--vpn=10.0.0.1/24", "--vpn=fe80::1%x/64", "--route=::/0", "1:h:2"], False)
def test_any_words_give_a_request_or_a_usage_error(arguments: list[str], posix: bool) -> None:
    environment = {"POSIXLY_CORRECT": ""} if posix else {}
    try:
        request = parse(arguments, environment)
    except UsageError as error:
        check_complaint(error)
        return
    assert isinstance(request, ShowVersion | ShowHelp | Connect | Demo | Keygen | Up | Status)
    if isinstance(request, Connect):
        assert 0 <= request.target.local_port <= 65535
        assert 0 < request.target.remote_port <= 65535
        assert request.deadline is None or 0 < request.deadline < float("inf")
        assert request.window is None or request.window >= 0
        assert [request.cmd, request.handoff].count(None) >= 1
        assert request.vpn is None or request.vpn.addresses
        purposes = (request.vpn, request.cmd, request.forwards, request.handoff)
        assert len([each for each in purposes if each]) <= 1


def check_complaint(error: UsageError) -> None:
    assert error.exit_code == 2
    assert len(str(error).splitlines()) >= 2  # what is wrong, and where to find help
