#!/usr/bin/env bash
# Several Ray nodes on one machine: to try what a cluster does before you pay for one.
#
#   clusters/local.sh up [NODES] [CPUS]    NODES nodes (2) of CPUS logical CPUs (1); prints what a shell has to set
#   clusters/local.sh down
#
# Cost: nothing; about 0.5 GiB of memory a node. Everything listens on 127.0.0.1 and asks for a token of its own, and
# other Ray clusters on this machine are left alone: `down` ends what `up` started, where `ray stop` would end them all.
# RAYNN_LOCAL: the folder of its logs and its token, /tmp/raynn-local-UID unless set; keep it short, sockets are in it.
# RAYNN_LOCAL_PORT: the first of 20 ports, 26379 unless set; Ray keeps 10002 to 19999 for its workers.
set -euo pipefail

folder=${RAYNN_LOCAL:-/tmp/raynn-local-$(id -u)}
port=${RAYNN_LOCAL_PORT:-26379}
dashboard=$((port + 1))
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS RAY_AUTH_TOKEN

start() { # NAME CPUS [OPTION...]: one node, its process on record so that `down` finds it
    local name=$1 cpus=$2 pid
    shift 2
    # Worker ports 0: any free one, for nodes on one machine cannot each have the same range. Folders of their own, as
    # on machines of their own: in one folder, a node unpacks a job's files over those that another already works in.
    setsid ray start --block --disable-usage-stats --node-ip-address=127.0.0.1 --num-cpus="$cpus" \
        --object-store-memory=300000000 --min-worker-port=0 --max-worker-port=0 --temp-dir="$folder/$name" "$@" \
        >"$folder/$name.log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >>"$folder/pids"
    until grep -q 'Ray runtime started' "$folder/$name.log"; do
        kill -0 "$pid" 2>/dev/null || {
            echo "$name did not start; $folder/$name.log says why:" >&2
            tail -n 5 "$folder/$name.log" >&2
            down
            exit 1
        }
        sleep 0.5
    done
}

up() {
    local nodes=${1:-2} cpus=${2:-1} node
    if [ -e "$folder/pids" ]; then
        echo "$folder/pids is there: this cluster is up; end it with: $0 down" >&2
        exit 2
    fi
    (umask 077 && mkdir -p "$folder" && head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >"$folder/token")
    start head "$cpus" --head --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" \
        --ray-client-server-port=$((port + 2)) --dashboard-agent-listen-port=$((port + 3))
    for node in $(seq 2 "$nodes"); do
        start "node-$node" "$cpus" --address="127.0.0.1:$port" --dashboard-agent-listen-port=$((port + 2 + node))
    done
    echo "export RAY_ADDRESS=127.0.0.1:$port RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token"
    echo "# ray job submit --address http://127.0.0.1:$dashboard --working-dir . -- python -m raynn train JOB"
}

down() {
    local pid
    [ -e "$folder/pids" ] || return 0
    # `ray start --block` ends its node's processes when told to end. The last started goes first, the head last.
    for pid in $(tac "$folder/pids"); do
        if grep -aqs 'start' "/proc/$pid/cmdline"; then
            kill "$pid"
            while grep -aqs 'start' "/proc/$pid/cmdline"; do sleep 0.2; done
        fi
    done
    rm -f "$folder/pids" "$folder/token"
}

case "${1-}" in
up) up "${@:2}" ;;
down) down ;;
*)
    sed -n 's/^# \{0,1\}//; 2,10p' "$0" >&2
    exit 2
    ;;
esac
