#!/usr/bin/env bash
# What a person with a card runs, from a clone with '.[torch]', transformers, timm and pytest installed for that card:
#
#     bash benchmarks/gpu.sh IMAGES [--dry-run]
#
# Contract suite on the card, step beside transformers, loader beside torch's, a run from files beside the 8,515 images/s of
# the model zoo's 64 Ascend 910, inference beside timm. Appends one table to docs/performance.md; what each part said stays
# in gpu-OUT/. --dry-run does the same on the CPU with the smallest model, and prints the table.
set -euo pipefail
cd "$(dirname "$0")/.."
stop() { echo "gpu.sh: $*" >&2; exit 2; }
[[ $# == 1 || $# == 2 && $2 == --dry-run ]] || stop "usage: bash benchmarks/gpu.sh IMAGES [--dry-run]"
images=$(realpath "$1")
[[ -d $images ]] || stop "$1 is no folder; name one of images"
python=${PYTHON:-python}
missing=$($python -c "
from importlib.util import find_spec
print(*(name for name in ('torch', 'transformers', 'timm', 'pytest') if not find_spec(name)))" 2> /dev/null) ||
  stop "$python does not start; name another: PYTHON=.venv/bin/python"
[[ -z $missing ]] || stop "$python lacks $missing: $python -m pip install $missing"
export PYTHONPATH=$PWD/src:$PWD/tests:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}
if [[ $# == 2 ]]; then
  device=cpu out=$(mktemp -d) table=/dev/stdout chosen=(-k "average and torch")
  step=(--recipe mae-vit-tiny --batch 2 --steps 1 --precision fp32)
  loader=(--images 128 --rounds 2 --workers 0)
  recipe=mae-vit-tiny settings=(model.depth=1 model.decoder_depth=1 train.batch_size=4) seconds=2
  inference=(--recipe finetune-vit-tiny --precision fp32 --images 4 --rounds 1)
else
  $python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" ||
    stop "no card that PyTorch can use; \`unmask doctor\` says more, --dry-run does all this on the CPU"
  device=cuda out=gpu-OUT table=docs/performance.md chosen=(-k torch)
  step=(--recipe mae-vit-base --batch 256 --steps 20 --precision bf16,fp32 --compile)
  loader=(--images 8192 --workers "$(nproc)")
  recipe=mae-vit-base settings=(train.batch_size=512 "data.workers=$(nproc)") seconds=180
  inference=(--recipe finetune-vit-base --precision bf16 --images 4096)
fi
mkdir -p "$out"

name=$($python -c "import torch; print(torch.cuda.get_device_name() if '$device' == 'cuda' else 'CPU')")
versions=$($python -c "
from importlib.metadata import version
print(', '.join(f'{name} {version(name)}' for name in ('torch', 'transformers', 'timm')))")

failed=""
part() { # NAME COMMAND...: what fails is said in the table, and the rest goes on
  echo "== $1" >&2
  "${@:2}" > "$out/$1" 2> "$out/$1.err" || { failed="$failed $1"; tail -n 5 "$out/$1.err" >&2; }
}
part contract env UNMASK_TEST_DEVICE=$device $python -m pytest tests/engines/test_contract.py "${chosen[@]}" -q -p no:cacheprovider
part step $python benchmarks/step.py "${step[@]}" --device $device
part loader $python benchmarks/loader.py --data "$images" "${loader[@]}"
part run $python -m unmask bench $recipe "data.train=$images" "device=$device" "${settings[@]}" --seconds $seconds
part inference $python benchmarks/inference.py --data "$images" "${inference[@]}" --device $device

{
  echo
  echo "### $name, $(nproc) cores, $(date +%F), $(git rev-parse --short HEAD 2> /dev/null || echo no commit)"
  echo
  echo "$versions${failed:+. Failed:$failed}"
  echo
  echo "| part | figures |"
  echo "|---|---|"
  echo "| contract suite | $(tail -1 "$out/contract") |"
  sed -nE 's/^(fp32|bf16) .*/\1/p; s/^  (unmask|transformers) (eager|compiled) +([0-9.]+).*/\1 \2 \3 images\/s/p; s/^  (ratio .*)/\1/p' \
    "$out/step" | paste -sd ';' | sed 's/^/| step, ViT | /; s/;/; /g; s/$/ |/'
  sed -nE 's/^\| [0-9]+ \| (\([a-e]\)[^|]*) \| ([0-9]+) \| ([0-9.]+).*/\1 \2 images\/s, \3 of (a)/p' "$out/loader" \
    | paste -sd ';' | sed 's/^/| loader | /; s/;/; /g; s/$/ |/'
  sed -nE 's/^(loader alone|step alone|together)  +([0-9.]+).*/\1 \2/p' "$out/run" \
    | paste -sd ';' | sed 's/^/| from files, images\/s (64 Ascend 910: 8,515) | /; s/;/; /g; s/$/ |/'
  sed -nE 's/^\| (unmask|timm|transformers) ([a-z0-9]+) \| ([0-9.]+) .*/\1 \2 \3 images\/s/p' "$out/inference" \
    | paste -sd ';' | sed 's/^/| inference from files | /; s/;/; /g; s/$/ |/'
} >> "$table"
[[ -z $failed ]]
