"""Where nat-traverse differs from 0.7 on purpose, and why. The manual page lists every row.

A test that finds us doing something else than 0.7 names the row that says so, by its key.
"""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """One deliberate difference; the texts are in the markup of `nat_traverse.cli.roff`."""

    key: str
    topic: str
    before: str
    now: str
    reason: str


DIFFERENCES = (
    Difference(
        "encryption",
        "Encryption",
        "None: whoever carried the packets could read and change them, and add some.",
        "Encrypted between two ends that are newer than 0.7, unless both were given `--plain`.",
        "What most tunnels carry is nobody else's business, and not every program that is put "
        "into one protects itself.",
    ),
    Difference(
        "proof",
        "Who is at the other end",
        "Whoever sent the right twenty bytes from there.",
        "With a secret or keys, whoever proves to have them; otherwise a code is shown on both "
        "sides, and compared by their users. Without the proof, exit status 3.",
        "A neighbour behind the peer's gateway can send from its address, and somebody on the way "
        "can send from any.",
    ),
    Difference(
        "lost-packets",
        "Lost packets",
        "Lost, and nobody was told.",
        "Repeated, and everything arrives once and in order. `--datagrams` keeps to what 0.7 did, "
        "for programs with a protocol of their own. With `--plain` what is lost is counted at both "
        "ends, and the exit status is 5.",
        "A pipe that loses data without a word is of little use.",
    ),
    Difference(
        "old-peers",
        "A peer that runs 0.7",
        "The only kind there was.",
        "Accepted, with a line that says that nothing is encrypted. Refused by a side with "
        "a secret, a key, a port forward, `--vpn`, `--datagrams` or `--retry`: it goes on waiting "
        "for a newer one, and ends with exit status 4 at the limit.",
        "Such a peer can prove nothing; and whoever asks for a proof must never get a plain tunnel "
        "because somebody claims to be old. It can't be found again either.",
    ),
    Difference(
        "modes",
        "Two sides that were started for different things",
        "Nobody was told.",
        "Exit status 8, and what differs, where one wants a plain tunnel and the other an "
        "encrypted one, or an encrypted one and only the ports. Exit status 3 where the proofs "
        "that were asked for differ, or what the tunnel is to carry.",
        "Nothing is to be sent in the clear because of a misunderstanding.",
    ),
    Difference(
        "limit",
        "How long it tries",
        "It sent for *N* seconds, then waited up to *S* seconds; success came after *N* at best.",
        "The sum is a limit, and connecting ends it at once.",
        "Nothing is gained by waiting once the path is open.",
    ),
    Difference(
        "default-limit",
        "Limit when none is given",
        "10 and 10 seconds.",
        "180 seconds.",
        "The other user has to be told and has to type; giving up early helps nobody.",
    ),
    Difference(
        "no-limit",
        "Limits out of range",
        "A negative `--timeout` gave a warning of Perl's and no limit.",
        "A negative `--timeout` means no limit, without the warning; so does a limit of more than "
        "a year.",
        "No clock is asked for a time that nobody will see.",
    ),
    Difference(
        "window",
        "`--window`",
        "The number of packets before the one acknowledgement.",
        "The same towards a peer that runs 0.7; otherwise only part of the limit.",
        "Acknowledgements between newer peers are repeated until one arrives, so a lost packet "
        "does not cost the attempt.",
    ),
    Difference(
        "timeout-explained",
        "When the limit is reached",
        "Exit status 4 and the word `timeout`.",
        "Exit status 4, and what was seen, what that means and what to try.",
        "A user can act on a reason.",
    ),
    Difference(
        "socket-errors",
        "Socket errors",
        "The error number as exit status, and its text.",
        "The same exit status; the message also names the likely cause.",
        "Scripts keep working, and people need not look numbers up.",
    ),
    Difference(
        "usage-status",
        "Usage errors",
        "The usage text, and exit status 0.",
        "What is wrong, where to find help, and exit status 2.",
        "A typing error in `until nat-traverse ...; do ...; done; openvpn` must not start OpenVPN.",
    ),
    Difference(
        "error-first",
        "`--version` or `--help` after an error",
        "The error, then what was asked for, and exit status 0.",
        "All errors, and exit status 2.",
        "As above: an error is never a success.",
    ),
    Difference(
        "help-stdout",
        "`--help`",
        "On standard error.",
        "On standard output.",
        "Help that was asked for is output, and can be piped into a pager.",
    ),
    Difference(
        "version-text",
        "`--version`",
        "`nat-traverse 0.7`",
        "The same form with the version of this program.",
        "It is another program.",
    ),
    Difference(
        "port-range",
        "Ports above 65535",
        "Cut to 16 bits: 70000 meant 4464.",
        "Refused, exit status 2.",
        "The peer would wait on another port.",
    ),
    Difference(
        "port-text",
        "Ports with something after the number",
        "`40000abc` failed with exit status 255 and no reason; `40001(9)` meant 40001.",
        "Refused, exit status 2.",
        "A port is a number; the second form was an accident of Perl's socket module.",
    ),
    Difference(
        "port-zero",
        "A remote port of 0",
        "Ran, and reported a timeout.",
        "Refused, exit status 2.",
        "Nothing can be sent to port 0.",
    ),
    Difference(
        "extra-field",
        "A fourth field, as in `1:host:2:3`",
        "Ignored.",
        "The port of the peer is what follows the last colon, and `host:2` is no address: refused, "
        "exit status 2.",
        "IPv6 addresses have colons of their own.",
    ),
    Difference(
        "ipv6",
        "IPv6",
        "Not known; exit status 0.",
        "`1:2001:db8::7:2` and `1:[2001:db8::7]:2` are both accepted.",
        "Many hosts have no other public address.",
    ),
    Difference(
        "addresses",
        "Names with several addresses",
        "The first IPv4 address was used.",
        "All addresses are tried at the same time.",
        "Nobody can tell beforehand which of them works.",
    ),
    Difference(
        "no-host",
        "Addresses that are no one host's: unspecified, multicast, broadcast",
        "Tried.",
        "Refused, exit status 2.",
        "A tunnel has exactly one other end.",
    ),
    Difference(
        "shared-port",
        "A local port in use",
        "Shared silently when the other program had allowed it.",
        "Refused, exit status 98.",
        "Each of the two would get some of the other's packets.",
    ),
    Difference(
        "cmd-pipes",
        "What `--cmd` gets as standard input and output",
        "The UDP socket: each write was a datagram, and the end of the data never came.",
        "Two pipes; with `--datagrams`, two packet sockets. The end of the peer's data is the end "
        "of its input. With `--plain`, too, what it writes is cut to fit the path.",
        "A late packet of the handshake must not reach the command, a long write must not become "
        "IP fragments, and most programs wait for the end of their input.",
    ),
    Difference(
        "empty-cmd",
        "`--cmd` with an empty word",
        "Connected, then failed with exit status 29.",
        "Refused at once, exit status 2.",
        "There is nothing to run.",
    ),
    Difference(
        "cmd-shell",
        "How `--cmd` runs",
        "Through the shell only when it had one of the shell's special characters: `exit 7` was "
        "not found.",
        "Always through the shell.",
        "One rule instead of two.",
    ),
    Difference(
        "new-options",
        "Unknown options",
        "For instance `--quiet`, `--json`, `--handoff` and `-L`.",
        "These are options now. Every abbreviation of 0.7 keeps its meaning: `-q` is "
        "`--quit-after-connect`, `-v` is `--version`.",
        "Scripts keep working.",
    ),
    Difference(
        "other-ports",
        "Gateways that change port numbers",
        "No path: exit status 4.",
        "It searches for the ports. With `--quit-after-connect` the exit status is 6 when the path "
        "that it finds is not between the two ports that were named.",
        "The program that comes next uses those two ports, so to it no such path exists.",
    ),
    Difference(
        "commands",
        "The words `demo`, `keygen`, `up` and `status` as first argument",
        "The usage text.",
        "Commands.",
        "Without a colon they never were addresses.",
    ),
    Difference(
        "icmp",
        "Refusals by ICMP",
        "Ended the attempt with exit status 111, or silently swallowed the acknowledgement.",
        "An observation: it goes on trying until the limit.",
        "A gateway refuses whatever comes before its own side has started.",
    ),
    Difference(
        "end-of-input",
        "End of input",
        "The program ended at once, whatever was still on its way.",
        "The end is passed on to the peer, and the program ends when both directions have. "
        "A peer that runs 0.7 cannot be told; the program ends when that has been silent for a "
        "second.",
        "Half of a conversation may end before the other.",
    ),
    Difference(
        "stdout",
        "Standard output that is a pipe or a file",
        "The last bytes, up to 8 KiB, were lost at the end.",
        "Every byte is written, in order, before the program ends.",
        "Lost data is an error.",
    ),
    Difference(
        "datagrams",
        "Size of datagrams",
        "Up to 8,192 bytes, sent as IP fragments.",
        "At most 1,400 bytes on the way, less where the path wants less. With `--plain` up to 64 "
        "KiB are accepted; with `--datagrams` one that does not fit is not sent, and that is told.",
        "Many gateways drop fragments, and one lost fragment loses the whole.",
    ),
    Difference(
        "sigterm",
        "SIGTERM",
        "Left a child process behind, which held the port.",
        "Everything is undone; the exit status is 128 plus the number of the signal.",
        "The next attempt needs the port.",
    ),
    Difference(
        "progress",
        "Progress on standard error",
        "Lines that begin with `>`, and a dot for each packet.",
        "One line for each thing that happens, with the seconds since the start; `--json` for "
        "programs.",
        "The time of an event is half of what it tells.",
    ),
)
