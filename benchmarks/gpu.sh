#!/usr/bin/env bash
# Everything that is measured on a GPU, on one, in about ten minutes: the tests for GPUs; the share of its peak that each
# network type reaches, as it is and as CUDA graphs; raynn's loop beside a plain one; whether compiling pays back;
# CIFAR-10 to .94 and tiny Shakespeare to 1.47; what the regularizers cost. Into a page, one part after the other, so
# that what was measured is there when the time is up.
#
#     benchmarks/gpu.sh DATA [PAGE.md]
#
# DATA is a folder as for throughput.py with cifar10_train.parquet and cifar10_test.parquet. PYTHON names another Python.
set -uo pipefail
data=$(realpath "${1:?usage: benchmarks/gpu.sh DATA [PAGE.md]}")
page=${2:-docs/benchmarks.md}
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-.venv/bin/python}
failed=0

part() { # what it is, then the command
    echo "== $1" >&2
    shift
    local started=$SECONDS
    "$@" || { echo "failed: $*" >&2; failed=1; }
    echo "== $((SECONDS - started)) s" >&2
}

"$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no GPU here that torch sees")' || exit 2
# a ResNet-18 in place of the network for two cores
cifar=(jobs/cifar10_cnn.yaml test/accuracy 0.94 "data.train=$data/cifar10_train.parquet"
    "data.test=$data/cifar10_test.parquet" 'network.block=residual' 'network.channels=[64, 128, 256, 512]'
    'network.pooling=stride' 'network.head_pooling=mean' 'optimization.max_epochs=20')
text=(jobs/tiny_shakespeare_text.yaml val/loss 1.47 "data.train=$data/tiny_shakespeare.txt")
part tests "$python" -m pytest -q -m gpu tests/gpu
part 'share of the peak' "$python" benchmarks/peak.py --seconds 4 --out "$page"
part 'CIFAR-10' "$python" benchmarks/to_target.py "${cifar[@]}" --out "$page"
part 'tiny Shakespeare' "$python" benchmarks/to_target.py "${text[@]}" --seeds 1 --out "$page"
part 'beside a plain loop' "$python" benchmarks/steady.py "$data" --device cuda
part 'as CUDA graphs' "$python" benchmarks/peak.py --seconds 4 --precision bf16 --compile reduce-overhead \
    --only feedforward cnn text_generator
part 'whether compiling pays back' "$python" benchmarks/compiled.py "$data" --device cuda
part 'what regularizers cost' "$python" benchmarks/regularizers.py --repeats 5 --out raynn/costs.json --page docs/costs.md
exit $failed
