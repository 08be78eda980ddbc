#!/usr/bin/env bash
# What an installed unmask must do, in an empty folder far from the clone: bash smoke.sh [VERSION]
# Needs unmask[torch,demo] on PATH. A minute on two cores, nothing is downloaded.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export UNMASK_CACHE="$folder/cache" MPLCONFIGDIR="$folder/matplotlib"

unmask --version | tee version
[ $# = 0 ] || grep -q "^unmask $1\b" version
unmask doctor
unmask recipes > recipes && grep -q demo-mae recipes
unmask config demo-mae > config
unmask pretrain demo-mae data.train=bundled:mnist5k/train data.workers=0 train.epochs=1 output=run # the demo's first step, shorter
unmask embed run bundled:mnist5k/val --out embeddings.parquet
unmask knn run bundled:mnist5k/train bundled:mnist5k/val
unmask convert run mae.pth --to facebook
unmask export run features.pt2
if python -c "import onnxscript" 2>/dev/null; then unmask export run onnx.onnx; fi # of the extra `onnx`
python -m unmask reconstruct run bundled:mnist5k/val --out reconstruction.png
for file in run/curves.png run/metrics.jsonl embeddings.parquet mae.pth features.pt2 reconstruction.png; do
	[ -s "$file" ] || { echo "smoke.sh: $file was not written" >&2; exit 1; }
done
echo "smoke.sh: all done"
