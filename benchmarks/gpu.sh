#!/usr/bin/env bash
# On one GPU, in under 8 minutes: the tests that say something there, and the tables, into benchmarks/results/*-gpu.md.
#
#     benchmarks/gpu.sh            everything
#     benchmarks/gpu.sh tables     without the tests
#
# Each part has its own limit, so that one that hangs does not take the others' time; what failed is said at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_PREALLOCATE=false
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/jax-gpu}"
results=benchmarks/results
failed=()

python -c 'import jax; print(jax.__version__, jax.devices())' || exit 1

# table NAME SECONDS TITLE ARGUMENTS...: `python -m ARGUMENTS`, whose output becomes NAME-gpu.md if it ended well.
table() {
  local name=$1 seconds=$2 title=$3 made
  shift 3
  made=$(mktemp)
  printf '# %s\n\n`python -m %s` on one GPU.\n\n' "$title" "$*" > "$made"
  if timeout "$seconds" python -m "$@" >> "$made"; then
    mv "$made" "$results/$name-gpu.md" && chmod 644 "$results/$name-gpu.md"
    cat "$results/$name-gpu.md"
  else
    failed+=("$name ($?)")
    rm -f "$made"
  fi
}

# Compiled anew, not read from the cache: how long that takes is in the table.
JAX_ENABLE_COMPILATION_CACHE=false table gpt 150 "GPT-2, 124 M" \
  benchmarks.gpt --size gpt2 --policy bf16 --batch 32 --steps 5 --rounds 5 --unroll
table loop 90 "The loop" benchmarks.loop --rounds 3 --quick --model small

if [ "${1:-all}" != tables ]; then
  # Products in full float32: the tests' tolerances are float32's, not TF32's.
  JAX_DEFAULT_MATMUL_PRECISION=highest timeout 220 \
    pytest -m gpu -q --numprocesses=0 -p no:cacheprovider || failed+=("tests ($?)")
fi
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
