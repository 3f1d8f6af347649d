# bash completion for nat-traverse

# The names of the tunnels that files describe.
_nat_traverse_names()
{
    local file
    for file in "${XDG_CONFIG_HOME:-$HOME/.config}/nat-traverse/"*.toml /etc/nat-traverse/*.toml; do
        file=${file##*/}
        [[ $file == "*.toml" ]] || printf '%s\n' "${file%.toml}"
    done
}

_nat_traverse()
{
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}
    local options operands=
    if [[ $current == "=" ]]; then
        current=
    elif [[ $before == "=" ]]; then
        before=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    COMPREPLY=()

    case $before in
        --cmd) mapfile -t COMPREPLY < <(compgen -c -- "$current"); return ;;
        --handoff) mapfile -t COMPREPLY < <(compgen -c -- "$current"); return ;;
        --wireguard) mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        -L) return ;;
        -R) return ;;
        -D) return ;;
        --expose) return ;;
        --vpn) return ;;
        --vpn-device) return ;;
        --route) return ;;
        --announce) return ;;
        --user) return ;;
        --secret) return ;;
        --secret-file) mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        --identity) mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        --peer-key) mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        --timeout) return ;;
        --window) return ;;
        --hard) mapfile -t COMPREPLY < <(compgen -W "auto always never" -- "$current"); return ;;
        --ttl) return ;;
        --hint) return ;;
        --rate) return ;;
        --keepalive) return ;;
        --left) mapfile -t COMPREPLY < <(compgen -W "none drop reject accept random double ipv6" -- "$current"); return ;;
        --right) mapfile -t COMPREPLY < <(compgen -W "none drop reject accept random double ipv6" -- "$current"); return ;;
    esac

    case ${COMP_WORDS[1]} in
        demo) options="--left --right --verbose --json --help --version" ;;
        keygen) options="--public --help --version"; operands=file ;;
        up) options="--quiet --verbose --json --help --version"; operands=names ;;
        status) options="--json --help --version"; operands=names ;;
        *) options="--cmd --datagrams --handoff --wireguard --quit-after-connect --plain -L -R -D --expose --retry --vpn --vpn-device --route --announce --user --secret --secret-file --identity --peer-key --timeout --window --hard --ttl --hint --rate --keepalive --quiet --verbose --json --help --version" ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
    elif ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "demo keygen up status" -- "$current")
    elif [[ $operands == file ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    elif [[ $operands == names ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_nat_traverse_names)" -- "$current")
    fi
}

complete -F _nat_traverse nat-traverse
