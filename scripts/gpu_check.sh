#!/usr/bin/env bash
# Checks a built program on a machine with an NVIDIA GPU: no network, no cargo, no Python needed.
#
#   scripts/gpu_check.sh                  all parts
#   scripts/gpu_check.sh train repeat     some of: doctor kernels parity train repeat memory bench
#                                         large-model large-lora large-nf4 large-peft large-peft-nf4
#
# The large parts need a Python with numpy, and torch, transformers and peft for the rivals; they write
# models of published shapes with random weights (14 to 16 GB) into OUT and go through all of SHAPES.
# Each part takes under 9 minutes, and one that was stopped goes on where it was when it is started
# again. Exit codes: 0 all passed, 1 a check failed, 3 this machine has no NVIDIA GPU,
# 124 a part ran out of time (start it again).
#
# Variables:
#   PROGRAM      the program; default dist/tunesmith
#   OUT          where results go; default gpu-check
#   GPU_DEVICE   device under test; default cuda. `cpu` tries this script without a GPU
#   SMOLLM2      the model of parity and bench; default models/SmolLM2-135M-Instruct.Q4_1.gguf
#   STEPS        steps of memory; default 1000
#   SHAPES       models of the large parts; default "llama2_7b llama3_8b"
#   TOKENS       tokens of a row of the large parts; default 2048
#   MICRO        rows of a micro-batch of the large parts; default "1 4 8"
#   PART_SECONDS time a part may take; default 520
set -uo pipefail
cd "$(dirname "$0")/.."

program=${PROGRAM:-dist/tunesmith}
out=${OUT:-gpu-check}
device=${GPU_DEVICE:-cuda}
smollm2=${SMOLLM2:-models/SmolLM2-135M-Instruct.Q4_1.gguf}
memory_steps=${STEPS:-1000}
part_seconds=${PART_SECONDS:-520}
shapes=${SHAPES:-llama2_7b llama3_8b}
row_tokens=${TOKENS:-2048}
micro_batches=${MICRO:-1 4 8}
all_parts=(doctor kernels parity train repeat memory bench large-model large-lora large-nf4 large-peft large-peft-nf4)

fail() { echo "error: $*" >&2; exit 1; }

if [ "$device" != cpu ] && [ ! -e /proc/driver/nvidia/version ] && ! nvidia-smi >/dev/null 2>&1; then
  echo "this machine has no NVIDIA GPU: nothing was checked"
  exit 3
fi
[ -x "$program" ] || fail "$program is missing; build it with scripts/build_release.sh"
program_id=$(sha256sum "$program" | cut -c1-12)
results=$out/results.tsv
# Another program starts afresh.
out=$out/$program_id-$device
mkdir -p "$out"

# --- results -----------------------------------------------------------------------------------

# note PART CHECK VALUE BOUND VERDICT; a part's earlier lines were removed when it started.
note() {
  printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>"$results"
  printf '%-8s %-46s %-22s %-12s %s\n' "$@"
  [ "$5" != FAILED ] || part_failed=1
}

# at_most PART CHECK VALUE BOUND
at_most() {
  local verdict=FAILED
  awk -v value="$3" -v bound="$4" 'BEGIN { exit !(value != "" && value + 0 == value && value <= bound + 0) }' &&
    verdict=passed
  note "$1" "$2" "${3:-nothing}" "<= $4" "$verdict"
}

# Value of a key in each line of JSON, a line each.
values_of() { awk -v key="\"$1\":" '{ at = index($0, key); if (at) { rest = substr($0, at + length(key)); gsub(/[ "]/, "", rest); split(rest, part, /[,}\]]/); print part[1] } }' "$2"; }

# The largest relative difference of two columns; nothing where their lengths differ.
largest_difference() {
  paste <(values_of "$1" "$2") <(values_of "$1" "$3") | awk -F'\t' '
    $1 == "" || $2 == "" || $1 != $1 + 0 || $2 != $2 + 0 { broken = 1; exit }
    { scale = $2 < 0 ? -$2 : $2; d = ($1 - $2) / (scale > 1e-12 ? scale : 1e-12); d = d < 0 ? -d : d; if (d > most) most = d; lines++ }
    END { if (!broken && lines) printf "%.3e\n", most }'
}

# --- running -----------------------------------------------------------------------------------

# Runs the program, within what is left of the part's time; its last words go to a log.
run() {
  local log=$1 left status
  shift
  left=$((part_end - SECONDS))
  [ "$left" -gt 5 ] || return 124
  timeout --kill-after=30 "$left" "$@" >>"$out/$log.log" 2>&1
  status=$?
  [ "$status" -ne 130 ] || status=124 # the program saved and stopped when its time was up
  [ "$status" -eq 0 ] || { echo "--- $out/$log.log ends:" >&2; tail -n 5 "$out/$log.log" >&2; }
  return "$status"
}

# must LOG COMMAND...: a part ends where one of its commands does not do its work.
must() {
  local status=0
  run "$@" || status=$?
  [ "$status" -ne 124 ] || { echo "$part ran out of time: start it again to go on"; exit 124; }
  [ "$status" -eq 0 ] || { note "$part" "$1" "exit $status" "exit 0" FAILED; return 1; }
}

# train LOG DEVICE RECIPE FOLDER [FLAG...]
train() {
  local log=$1 where=$2 recipe=$3 folder=$4
  shift 4
  must "$log" "$program" train "$recipe" --device "$where" --set "output_dir=\"$folder\"" "$@"
}

# Asks the driver every second for the GPU's memory in MiB, until the file `$1.stop` appears.
watch_memory() {
  : >"$1"
  rm -f "$1.stop"
  command -v nvidia-smi >/dev/null || return 0
  while [ ! -e "$1.stop" ]; do
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -n 1 >>"$1"
    sleep 1
  done
}

# watched FILE COMMAND...: runs a command and leaves the GPU's memory over time in FILE.
watched() {
  local file=$1 status=0 watcher
  shift
  watch_memory "$file" &
  watcher=$!
  "$@" || status=$?
  touch "$file.stop"
  wait "$watcher"
  rm -f "$file.stop"
  return "$status"
}

# The GPU's memory at its fullest, in MiB.
largest() { local most; most=$(sort -n "$1" 2>/dev/null | tail -n 1); echo "${most:-unknown}"; }

# --- parts -------------------------------------------------------------------------------------

part_doctor() {
  must doctor "$program" doctor || return
  local gpu
  gpu=$(grep '^gpu' "$out/doctor.log" | tail -n 1 | sed 's/^gpu *//')
  case $device:$gpu in
    cpu:* | *ready*) note doctor gpu "$gpu" ready passed ;;
    *) note doctor gpu "$gpu" ready FAILED ;;
  esac
}

# Each operation against its reference on this GPU, as the program itself checks before it trusts one.
part_kernels() {
  must kernels "$program" doctor || return
  local line
  grep '^gpu kernel' "$out/kernels.log" | sed 's/^gpu kernel *//' | sort -u | while read -r line; do
    case $line in
      *": on,"*) note kernels "${line%%:*}" "${line#*: }" "<= 1" passed ;;
      *) note kernels "${line%%:*}" "${line#*: }" "<= 1" FAILED ;;
    esac
  done
  ! awk -F'\t' '$1 == "kernels" && $5 == "FAILED" { found = 1 } END { exit !found }' "$results"
}

# Perplexity on both devices, in f32: by default the GPU computes in bf16.
compare_perplexity() {
  local name=$1 model=$2 limit=$3 bound=1e-3 where
  for where in "$device" cpu; do
    must "parity-$name-$where" "$program" evaluate "$model" --task perplexity --data ARCHITECTURE.md \
      --limit "$limit" --device "$where" --precision f32 --offline --json "$out/parity-$name-$where.json" || return
    # The JSON may be on several lines.
    tr -d '\n' <"$out/parity-$name-$where.json" | sed 's/"perplexity": *{//' >"$out/parity-$name-$where.line"
    echo >>"$out/parity-$name-$where.line"
  done
  at_most parity "$name: perplexity, relative" \
    "$(largest_difference perplexity "$out/parity-$name-$device.line" "$out/parity-$name-cpu.line")" "$bound"
}

part_parity() {
  compare_perplexity tiny recipes/tiny_llama 20 || return
  if [ -f "$smollm2" ]; then
    compare_perplexity smollm2 "$smollm2" 8 || return
  else
    note parity smollm2 "$smollm2 is not here" - skipped
  fi
}

part_train() {
  local where kind recipe
  for kind in adamw adamw_8bit; do
    recipe=$out/train-$kind.toml
    sed -E "s/^\[optimizer\.adamw\]/[optimizer.$kind]/" recipes/tiny_pirate.toml >"$recipe"
    # 1 and 2, so that neither is the other where the device is the CPU.
    train "train-$kind-1" "$device" "$recipe" "$out/train/$kind-1" --set 'precision="f32"' || return
    train "train-$kind-2" cpu "$recipe" "$out/train/$kind-2" --set 'precision="f32"' || return
    at_most train "$kind: losses of all steps, relative" \
      "$(largest_difference loss "$out/train/$kind-1/metrics.jsonl" "$out/train/$kind-2/metrics.jsonl")" 1e-3
  done
}

part_repeat() {
  local run file verdict
  # The third runs every block again.
  for run in 1:off 2:off 3:on; do
    train "repeat-${run%:*}" "$device" recipes/tiny_pirate.toml "$out/repeat/${run%:*}" --set 'precision="f32"' \
      --set "train.gradient_checkpointing=\"${run#*:}\"" || return
  done
  for run in 2 3; do
    for file in adapter_model.safetensors adapter_config.json; do
      verdict=FAILED
      cmp -s "$out/repeat/1/adapter/$file" "$out/repeat/$run/adapter/$file" && verdict=passed
      note repeat "$file of runs 1 and $run" "$(sha256sum <"$out/repeat/$run/adapter/$file" | cut -c1-12)" identical "$verdict"
    done
  done
}

part_memory() {
  local recipe=$out/memory.toml at later used
  sed -E "s/^epochs *=.*/steps = $memory_steps/" recipes/tiny_pirate.toml >"$recipe"
  watched "$out/memory-gpu.txt" train memory "$device" "$recipe" "$out/memory" || return
  at=$((memory_steps / 10))
  later=$(awk -v at="$at" -v last="$memory_steps" '
    { step = $0; sub(/.*"step": */, "", step); peak = $0; sub(/.*"peak_memory_bytes": */, "", peak) }
    step + 0 == at { early = peak + 0 } step + 0 == last { late = peak + 0 }
    END { if (early && late) printf "%.4f\n", late / early }' "$out/memory/metrics.jsonl")
  at_most memory "peak of the process, step $memory_steps / step $at" "$later" 1.05
  used=$(awk 'NF { line[++n] = $1 } END { if (n >= 10) { for (i = int(n / 5); i <= n; i++) { part = i <= n / 2 ? 0 : 1; if (line[i] > most[part]) most[part] = line[i] } if (most[0]) printf "%.4f\n", most[1] / most[0] } }' "$out/memory-gpu.txt")
  if [ -n "$used" ]; then
    at_most memory "GPU memory, second half / first half" "$used" 1.02
  else
    note memory "GPU memory" "too few samples" - skipped
  fi
}

# Rows of 256 tokens, the same in every run; all carry loss.
bench_rows() {
  awk 'BEGIN { srand(7); for (row = 0; row < 160; row++) { ids = ""; for (i = 0; i < 256; i++) ids = ids (i ? "," : "") (100 + int(rand() * 40000)); print "{\"input_ids\":[" ids "],\"labels\":[" ids "]}" } }'
}

bench_recipe() {
  cat <<TOML
base_model = "$1"
output_dir = "$2"

[[dataset]]
path = "$3"
format = "tokens"

[batch]
sequence_length = 256
packing = false
shuffle = false
sequences_per_micro_batch = 4
micro_batches_per_step = 1

[adapter.lora]
rank = 16
alpha = 32.0

[optimizer.adamw]
learning_rate = 1e-4

[schedule.constant]
warmup_steps = 0

[train]
steps = $4
gradient_checkpointing = "off"

[checkpoint]
every_steps = 1000
TOML
}

part_bench() {
  [ -f "$smollm2" ] || { note bench tokens/s "$smollm2 is not here" - skipped; return; }
  local steps=40 rows=$out/bench-rows.jsonl base=$out/bench-base ours python
  [ "$device" != cpu ] || steps=8
  bench_rows >"$rows"
  # PEFT needs a folder: the model with an adapter of one step merged in, the same base for both.
  if [ ! -f "$base/config.json" ]; then
    rm -rf "$base"
    bench_recipe "$smollm2" "$out/bench-seed" "$rows" 1 >"$out/bench-seed.toml"
    train bench-seed "$device" "$out/bench-seed.toml" "$out/bench-seed" || return
    must bench-merge "$program" merge "$out/bench-seed" --output "$base" || return
  fi
  bench_recipe "$base" "$out/bench-ours" "$rows" "$steps" >"$out/bench.toml"
  watched "$out/bench-ours-gpu.txt" train bench-ours "$device" "$out/bench.toml" "$out/bench-ours" --fresh || return
  ours=$(paste <(values_of tokens "$out/bench-ours/metrics.jsonl") <(values_of step_seconds "$out/bench-ours/metrics.jsonl") |
    awk 'NR > 3 { tokens += $1; seconds += $2 } END { if (seconds) printf "%.0f\n", tokens / seconds }')
  note bench "tunesmith: tokens/s" "${ours:-nothing}" - "$([ -n "$ours" ] && echo measured || echo FAILED)"
  note bench "tunesmith: GPU memory, MiB" "$(largest "$out/bench-ours-gpu.txt")" - measured
  python=$(command -v python3 || true)
  if [ -z "$python" ] || ! "$python" -c 'import torch, transformers, peft' 2>/dev/null; then
    note bench "PEFT: tokens/s" "python3 has no torch, transformers and peft" - skipped
    return
  fi
  local mode flags
  for mode in plain checkpointing; do
    flags=()
    [ "$mode" = plain ] || flags=(--checkpointing)
    : >"$out/bench-peft-$mode.log"
    watched "$out/bench-peft-$mode-gpu.txt" must "bench-peft-$mode" "$python" scripts/peft_bench.py "$base" "$rows" \
      --steps "$steps" --device "$device" "${flags[@]}" || return
    note bench "PEFT, $mode: tokens/s" "$(values_of tokens_per_second "$out/bench-peft-$mode.log" | tail -n 1)" - measured
    note bench "PEFT, $mode: GPU memory, MiB" "$(largest "$out/bench-peft-$mode-gpu.txt")" - measured
  done
}

# --- large models ------------------------------------------------------------------------------

large_python() {
  python=$(command -v python3 || true)
  [ -n "$python" ] && "$python" -c "import $1" 2>/dev/null && return
  note "$part" "$2" "python3 has no $1" - skipped
  part_skipped=1
  return 1
}

part_large_model() {
  local shape
  large_python numpy "models" || return 0
  for shape in $shapes; do
    [ -e "$out/$shape/.complete" ] && continue
    rm -rf "$out/$shape"
    must "large-model-$shape" "$python" scripts/make_random_model.py "$shape" "$out/$shape" recipes/tiny_llama || return
    touch "$out/$shape/.complete"
    note large-model "$shape" "$(du -sh "$out/$shape" | cut -f1)" - measured
  done
}

# Rows of ids that every vocabulary has; all carry loss.
large_rows() {
  [ -s "$out/large-rows.jsonl" ] && return
  awk -v tokens="$row_tokens" 'BEGIN { srand(7); for (row = 0; row < 96; row++) { ids = ""; for (i = 0; i < tokens; i++) ids = ids (i ? "," : "") (3 + int(rand() * 500)); print "{\"input_ids\":[" ids "],\"labels\":[" ids "]}" } }' >"$out/large-rows.jsonl.new"
  mv "$out/large-rows.jsonl.new" "$out/large-rows.jsonl"
}

# The rate of bf16 products on this device, in TFLOP/s, measured once.
matmul_rate() {
  if [ ! -s "$out/matmul.json" ] && large_python torch "matmul rate"; then
    "$python" scripts/peft_bench.py --matmul --device "$device" >"$out/matmul.json" 2>>"$out/matmul.log" || rm -f "$out/matmul.json"
  fi
  [ ! -s "$out/matmul.json" ] || values_of tflops_per_second "$out/matmul.json"
}

# planned_and_first PART WHAT RUN: what the plan said of the memory, and the time to the first step.
planned_and_first() {
  local report=$3/report.json planned measured seconds
  planned=$(values_of peak_bytes "$report" | tail -n 1)
  measured=$(values_of peak_memory_bytes "$report" | tail -n 1)
  if [ "${planned:-0}" -gt 0 ] && [ "${measured:-0}" -gt 0 ]; then
    note "$1" "$2: planned / measured memory" \
      "$(awk -v p="$planned" -v m="$measured" 'BEGIN { printf "%.3f", p / m }')" "goal 0.9-1.1" measured
  fi
  # Without the checks of the kernels, which only the first run on a machine makes.
  seconds=$(values_of seconds_to_first_step "$report" | tail -n 1)
  note "$1" "$2: seconds to the first step" "${seconds:-nothing}" "goal 30" measured
}

# large_ours PART SHAPE ROWS [FLAG...]
large_ours() {
  local kind=$1 shape=$2 rows=$3 name=$1-$2-$3 steps=11 speed rate
  shift 3
  [ -e "$out/$name.done" ] && return
  bench_recipe "$out/$shape" "$out/$name" "$out/large-rows.jsonl" "$steps" |
    sed -E "s/^sequence_length = .*/sequence_length = $row_tokens/; s/^sequences_per_micro_batch = .*/sequences_per_micro_batch = $rows/; s/^gradient_checkpointing = .*/gradient_checkpointing = \"auto\"/" >"$out/$name.toml"
  watched "$out/$name-gpu.txt" train "$name" "$device" "$out/$name.toml" "$out/$name" --fresh "$@" || return
  speed=$(paste <(values_of tokens "$out/$name/metrics.jsonl") <(values_of step_seconds "$out/$name/metrics.jsonl") |
    awk 'NR > 3 { tokens += $1; seconds += $2 } END { if (seconds) printf "%.0f\n", tokens / seconds }')
  note "$kind" "$shape x$rows: tunesmith, tokens/s" "${speed:-nothing}" - "$([ -n "$speed" ] && echo measured || echo FAILED)"
  note "$kind" "$shape x$rows: tunesmith, GPU memory, MiB" "$(largest "$out/$name-gpu.txt")" - measured
  planned_and_first "$kind" "$shape x$rows" "$out/$name"
  rate=$(matmul_rate)
  if [ -n "$rate" ] && [ -n "$speed" ]; then
    local bytes
    bytes=$(cat "$out/$shape"/*.safetensors | wc -c)
    note "$kind" "$shape x$rows: share of $rate TFLOP/s at 4 x parameters" \
      "$(awk -v s="$speed" -v b="$bytes" -v r="$rate" 'BEGIN { printf "%.3f", 4 * b / 2 * s / (r * 1e12) }')" "goal 0.60" measured
  fi
  : >"$out/$name.done"
}

large_each() {
  local kind=$1 shape rows
  shift
  large_rows
  for shape in $shapes; do
    [ -e "$out/$shape/.complete" ] || { note "$kind" "$shape" "run the part large-model first" - skipped; part_skipped=1; continue; }
    for rows in $micro_batches; do
      "$kind-of" "$shape" "$rows" "$@" || return
    done
  done
}

large-lora-of() { large_ours large-lora "$@"; }
large-nf4-of() { large_ours large-nf4 "$@" --set 'quantize_base="nf4"'; }
part_large_lora() { large_each large-lora; }
part_large_nf4() { large_each large-nf4; }

# large_peft PART SHAPE ROWS MODE FLAG...: a rival that does not fit or is not there is a line, no failure.
large_peft() {
  local kind=$1 shape=$2 rows=$3 mode=$4 name=$1-$2-$3-$4 status=0 verdict=measured value
  shift 4
  [ -e "$out/$name.done" ] && return
  : >"$out/$name.log"
  watched "$out/$name-gpu.txt" run "$name" "$python" scripts/peft_bench.py "$out/$shape" "$out/large-rows.jsonl" \
    --steps 11 --rows "$rows" --device "$device" "$@" || status=$?
  [ "$status" -ne 124 ] || { echo "$part ran out of time: start it again to go on"; exit 124; }
  value=$(values_of tokens_per_second "$out/$name.log" | tail -n 1)
  [ "$status" -eq 0 ] || { verdict=skipped; value="$(grep -oE 'OutOfMemory|out of memory|[a-z_]+ is not installed' "$out/$name.log" | tail -n 1 || true)"; }
  note "$kind" "$shape x$rows: $mode, tokens/s" "${value:-exit $status}" - "$verdict"
  [ "$status" -ne 0 ] || note "$kind" "$shape x$rows: $mode, GPU memory, MiB" "$(largest "$out/$name-gpu.txt")" - measured
  : >"$out/$name.done"
}

large-peft-of() {
  local shape=$1 rows=$2
  large_peft large-peft "$shape" "$rows" plain || return
  large_peft large-peft "$shape" "$rows" checkpointing --checkpointing || return
  large_peft large-peft "$shape" "$rows" compile --compile || return
  large_peft large-peft "$shape" "$rows" liger --liger || return
  large_peft large-peft "$shape" "$rows" unsloth --unsloth --checkpointing
}

large-peft-nf4-of() {
  local shape=$1 rows=$2
  large_peft large-peft-nf4 "$shape" "$rows" plain --nf4 || return
  large_peft large-peft-nf4 "$shape" "$rows" checkpointing --nf4 --checkpointing || return
  large_peft large-peft-nf4 "$shape" "$rows" unsloth --nf4 --unsloth --checkpointing
}

part_large_peft() { large_python "torch, transformers, peft" rivals || return 0; large_each large-peft; }
part_large_peft_nf4() { large_python "torch, transformers, peft" rivals || return 0; large_each large-peft-nf4; }

# --- all of it ---------------------------------------------------------------------------------

[ $# -gt 0 ] && parts=("$@") || parts=("${all_parts[@]}")
for part in "${parts[@]}"; do
  [[ " ${all_parts[*]} " == *" $part "* ]] || fail "there is no part \`$part\`; parts: ${all_parts[*]}"
done
touch "$results"
failed=0
for part in "${parts[@]}"; do
  done_file=$out/$part.done
  if [ -e "$done_file" ]; then
    echo "$part: done before with this program; remove $done_file to repeat it"
    continue
  fi
  # Only this part's lines of an earlier try go; large parts go on where they were, line by line.
  case $part in
    large-*) awk -F'\t' -v part="$part" '$1 != part || $2 != "seconds"' "$results" >"$results.partial" ;;
    *) awk -F'\t' -v part="$part" '$1 != part' "$results" >"$results.partial" ;;
  esac
  mv "$results.partial" "$results"
  part_failed=0
  part_skipped=0 # something may be there the next time
  part_end=$((SECONDS + part_seconds))
  started=$SECONDS
  "part_${part//-/_}" || part_failed=1
  note "$part" "seconds" "$((SECONDS - started))" "<= 540" "$([ "$part_failed" -eq 0 ] && echo passed || echo FAILED)"
  [ "$part_failed" -eq 0 ] || failed=1
  [ "$part_failed" -ne 0 ] || [ "$part_skipped" -ne 0 ] || : >"$done_file"
done

echo
echo "program $program_id, device $device, $(date -u +%Y-%m-%d)$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1 | sed 's/^/, /')"
awk -F'\t' '{ printf "%-8s %-46s %-22s %-12s %s\n", $1, $2, $3, $4, $5 }' "$results"
exit "$failed"
