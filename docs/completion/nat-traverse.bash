# bash completion for nat-traverse

# Offer the names, which begin with $1, of the tunnels that files describe. A file may be called
# anything, and what is offered is typed: so only what can be a name, and no part of it is expanded.
_nat_traverse_names()
{
    local file name known='^[A-Za-z0-9_@][A-Za-z0-9_@.:\-]*$'
    for file in "${XDG_CONFIG_HOME:-$HOME/.config}/nat-traverse/"*.toml /etc/nat-traverse/*.toml; do
        name=${file##*/}
        name=${name%.toml}
        [[ $name =~ $known ]] || continue
        printf -v name %q "$name"
        [[ $name == "$1"* ]] && COMPREPLY+=("$name")
    done
}

# Offer the files that begin with $1; bash then quotes what a shell would read something into.
_nat_traverse_files()
{
    mapfile -t COMPREPLY < <(compgen -f -- "$1")
    compopt -o filenames 2>/dev/null
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
        --wireguard) _nat_traverse_files "$current"; return ;;
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
        --secret-file) _nat_traverse_files "$current"; return ;;
        --identity) _nat_traverse_files "$current"; return ;;
        --peer-key) _nat_traverse_files "$current"; return ;;
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
        _nat_traverse_files "$current"
    elif [[ $operands == names ]]; then
        _nat_traverse_names "$current"
    fi
}

complete -F _nat_traverse nat-traverse
