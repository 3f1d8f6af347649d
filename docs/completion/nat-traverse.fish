# fish completion for nat-traverse

# The names of the tunnels that files describe.
function __nat_traverse_names
    set -q XDG_CONFIG_HOME; and set -l base $XDG_CONFIG_HOME; or set -l base $HOME/.config
    for file in $base/nat-traverse/*.toml /etc/nat-traverse/*.toml
        string replace -r '^.*/(.*)\.toml$' '$1' -- $file
    end
end

complete -c nat-traverse -f
complete -c nat-traverse -n __fish_is_first_arg -a demo -d 'show a tunnel on this one machine, between two kernel NATs'
complete -c nat-traverse -n __fish_is_first_arg -a keygen -d 'make a key for --identity'
complete -c nat-traverse -n __fish_is_first_arg -a up -d 'run the tunnels that files describe, as a service'
complete -c nat-traverse -n __fish_is_first_arg -a status -d 'show the tunnels that run by up'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l cmd -x -a '(__fish_complete_command)' -d 'run CMD through the shell, its standard input and output bound to the tunnel'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l datagrams -d 'carry datagrams: one read is one, one write is one, unreliable and unordered'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l handoff -x -a '(__fish_complete_command)' -d 'close the socket and become CMD, which uses the same port itself'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l quit-after-connect -d 'exit 0 as soon as a path between the two ports is proven, 6 if there is one between other ports only'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l plain -d 'as 0.7 did it: bare UDP, nothing encrypted, nothing repeated'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -s L -x -d 'as with ssh: SPEC is [BIND:]PORT:HOST:HOSTPORT'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -s R -x -d 'the same the other way round: the other side listens on PORT, and HOST:HOSTPORT is connected to from here'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -s D -x -d 'a SOCKS5 server on PORT here, whose connections start on the other side'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l expose -x -d 'let the other side reach this from here, or listen there with -R'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l retry -d 'when the tunnel is lost, find a path again, for ever'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l secret -x -d 'what both sides know'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l secret-file -r -F -d 'the first line of FILE is the secret'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l identity -r -F -d 'this side’s private key, as `nat-traverse keygen` makes it'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l peer-key -r -F -d 'a public key that the other side may have, or a file with one a line'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l timeout -x -d 'give up after N (see --window) and S seconds together'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l window -x -d 'towards a peer that runs 0.7: send N opening packets, one a second, before the acknowledgement'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l hard -x -a 'auto always never' -d 'whether to search for the ports of a gateway that changes them'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l ttl -x -d 'time to live of the packets that open the own gateway: 1 to 255, auto, or off for that of all others'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l hint -x -d 'a port that the peer’s gateway was seen to use lately: search near it first'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l rate -x -d 'unsolicited packets a second, at most'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l keepalive -x -d 'seconds between two signs of life on an idle tunnel'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l quiet -d 'say nothing but errors'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l verbose -d 'say more (-v is --version)'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l json -d 'one JSON object a line, for programs'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l help -d 'print this text and exit'
complete -c nat-traverse -n 'not __fish_seen_subcommand_from demo keygen up status' -l version -d 'print the version and exit'
complete -c nat-traverse -n '__fish_seen_subcommand_from demo' -l left -x -a 'none drop reject accept random double ipv6' -d 'what stands in front of the left host'
complete -c nat-traverse -n '__fish_seen_subcommand_from demo' -l right -x -a 'none drop reject accept random double ipv6' -d 'what stands in front of the right host'
complete -c nat-traverse -n '__fish_seen_subcommand_from demo' -l verbose -d 'say more (-v is --version)'
complete -c nat-traverse -n '__fish_seen_subcommand_from demo' -l json -d 'one JSON object a line, for programs'
complete -c nat-traverse -n '__fish_seen_subcommand_from demo' -l help -d 'print this text and exit'
complete -c nat-traverse -n '__fish_seen_subcommand_from demo' -l version -d 'print the version and exit'
complete -c nat-traverse -n '__fish_seen_subcommand_from keygen' -l public -d 'print the public half of the key that is in FILE already'
complete -c nat-traverse -n '__fish_seen_subcommand_from keygen' -l help -d 'print this text and exit'
complete -c nat-traverse -n '__fish_seen_subcommand_from keygen' -l version -d 'print the version and exit'
complete -c nat-traverse -n '__fish_seen_subcommand_from keygen' -F
complete -c nat-traverse -n '__fish_seen_subcommand_from up' -l quiet -d 'say nothing but errors'
complete -c nat-traverse -n '__fish_seen_subcommand_from up' -l verbose -d 'say more (-v is --version)'
complete -c nat-traverse -n '__fish_seen_subcommand_from up' -l json -d 'one JSON object a line, for programs'
complete -c nat-traverse -n '__fish_seen_subcommand_from up' -l help -d 'print this text and exit'
complete -c nat-traverse -n '__fish_seen_subcommand_from up' -l version -d 'print the version and exit'
complete -c nat-traverse -n '__fish_seen_subcommand_from up' -a '(__nat_traverse_names)'
complete -c nat-traverse -n '__fish_seen_subcommand_from status' -l json -d 'print a list of JSON objects, for programs'
complete -c nat-traverse -n '__fish_seen_subcommand_from status' -l help -d 'print this text and exit'
complete -c nat-traverse -n '__fish_seen_subcommand_from status' -l version -d 'print the version and exit'
complete -c nat-traverse -n '__fish_seen_subcommand_from status' -a '(__nat_traverse_names)'
