#!/usr/bin/env bash
# What a machine needs to be a node; aws.yaml, gcp.yaml, ssh.yaml and slurm.sh call it.
#
#   node.sh packages FOLDER   ~/raynn-env with Python 3.11 or newer, Ray, PyTorch and the raynn in FOLDER, in the versions
#                             of FOLDER/constraints.txt; 3 to 6 minutes and 2 GB on a CPU, 8 GB with CUDA (estimates)
#   node.sh share             /shared on this machine, exported over NFS to private addresses (the head of a cloud)
#   node.sh mount HEAD        HEAD's /shared, mounted here (the workers of a cloud)
#   node.sh shared FOLDER     fails where FOLDER is not a folder that can be written
set -euo pipefail

environment="$HOME/raynn-env"

packages() {
    local folder=$1 python found='' index=()
    for python in python3.11 python3.12 python3.13 python3; do
        if "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            found=$python
            break
        fi
    done
    if [ ! -x "$environment/bin/python" ]; then
        if [ -n "$found" ]; then
            "$found" -m venv "$environment"
        else # the system's Python is too old: uv brings its own
            curl -LsSf https://astral.sh/uv/install.sh | sh
            "$HOME/.local/bin/uv" venv --seed --python 3.11 "$environment"
        fi
    fi
    # PyTorch for CPUs is a tenth of the one with CUDA.
    nvidia-smi >/dev/null 2>&1 || index=(--extra-index-url https://download.pytorch.org/whl/cpu)
    "$environment/bin/pip" install --quiet --disable-pip-version-check "${index[@]}" \
        --constraint "$folder/constraints.txt" --editable "$folder"
    # `ray exec`, `ray status` and a job's driver find python and ray by PATH, and meet a cluster that asks for its token.
    local line="export PATH=$environment/bin:\$PATH RAY_AUTH_MODE=token"
    grep -qxF "$line" "$HOME/.bashrc" 2>/dev/null || echo "$line" >>"$HOME/.bashrc"
    if [ -f "$HOME/.ray/auth_token" ]; then chmod 600 "$HOME/.ray/auth_token"; fi
}

share() {
    sudo apt-get update -qq
    sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nfs-kernel-server
    sudo install -d -o "$(id -u)" -g "$(id -g)" /shared
    # The firewall keeps strangers out; this keeps out whoever should come past it from a public address.
    local network options='(rw,async,no_subtree_check)'
    for network in 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16; do echo "/shared $network$options"; done |
        sudo tee /etc/exports.d/raynn.exports >/dev/null
    sudo exportfs -ra
}

mount_shared() {
    mountpoint -q /shared && return
    command -v mount.nfs >/dev/null || {
        sudo apt-get update -qq
        sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nfs-common
    }
    sudo mkdir -p /shared
    sudo mount -t nfs "$1:/shared" /shared
}

shared() {
    [ -d "$1" ] && [ -w "$1" ] || {
        echo "$(hostname): $1 is not a folder that can be written: mount the storage that all nodes share there" >&2
        exit 1
    }
}

case "${1-}:$#" in
packages:2) packages "$2" ;;
share:1) share ;;
mount:2) mount_shared "$2" ;;
shared:2) shared "$2" ;;
*)
    sed -n 's/^# \{0,1\}//; 2,8p' "$0" >&2
    exit 2
    ;;
esac
