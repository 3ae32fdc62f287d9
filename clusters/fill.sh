#!/usr/bin/env bash
# A file with every ${NAME} in it replaced by the environment's NAME, on stdout; $NAME without braces stays as it is.
#
#   clusters/fill.sh clusters/gcp.yaml >clusters/mine.yaml
set -euo pipefail

[ $# = 1 ] || {
    sed -n 's/^# \{0,1\}//; 2,4p' "$0" >&2
    exit 2
}
text=$(<"$1")
for name in $(grep -oE '[$][{][A-Z_]+[}]' "$1" | sort -u | tr -cd 'A-Z_\n'); do
    [ -n "${!name-}" ] || {
        echo "$1 needs $name in the environment; export $name=..." >&2
        exit 2
    }
    text=${text//"\${$name}"/"${!name}"}
done
printf '%s\n' "$text"
