#!/usr/bin/env bash
# Builds the optimised program for CPU and CUDA as one stripped file, packs it, and tries it with
# nothing of this machine's environment. Needs no GPU and no CUDA toolkit.
#
#   scripts/build_release.sh             dist/tunesmith and dist/tunesmith-VERSION-ARCH-linux.tar.zst
#   scripts/build_release.sh cpu         the same without CUDA
set -euo pipefail
cd "$(dirname "$0")/.."

need() { command -v "$1" >/dev/null || { echo "error: \`$1\` is missing; $2" >&2; exit 1; }; }
need cargo "install Rust with rustup"
need cc "install a C compiler, on Debian: apt-get install build-essential"
need zstd "on Debian: apt-get install zstd"

most_mib=64                    # a common limit of what may be carried to another machine
features=(--features cuda)
case ${1:-cuda} in
  cuda) ;;
  cpu) features=() ;;
  *) echo "error: expected \`cuda\` or \`cpu\`, not \`$1\`" >&2; exit 1 ;;
esac

cargo build --locked --profile dist --package recipes --bin tunesmith "${features[@]}"

mkdir -p dist
install -m 755 "${CARGO_TARGET_DIR:-target}/dist/tunesmith" dist/tunesmith

# Before packing: a program that does not start is not worth carrying. No HOME, no PATH.
(cd / && env -i "$OLDPWD/dist/tunesmith" --version)
version=$(env -i dist/tunesmith --version | awk '{ print $2; exit }')
facts=$(env -i dist/tunesmith doctor)
echo "$facts"
if [ "${#features[@]}" -gt 0 ] && grep -q 'computes on the CPU only' <<<"$facts"; then
  echo "error: the program was built without CUDA" >&2
  exit 1
fi
echo "needs of the system:"
ldd dist/tunesmith
if readelf --version >/dev/null 2>&1; then
  newest=$(readelf --dyn-syms --wide dist/tunesmith | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -1)
  echo "newest symbol version: $newest"
fi

archive=dist/tunesmith-$version-$(uname -m)-linux.tar.zst
licences=$(ls LICENSE* 2>/dev/null || true)
# shellcheck disable=SC2086  # several names
tar --create --owner=0 --group=0 --mtime=@0 --sort=name $licences -C dist tunesmith |
  zstd -19 -T0 --quiet --force -o "$archive"
bytes=$(stat --format %s "$archive")
echo "$archive: $((bytes / 1048576)) MiB, program $(($(stat --format %s dist/tunesmith) / 1048576)) MiB"
if [ "$bytes" -gt $((most_mib * 1048576)) ]; then
  echo "error: the archive is over $most_mib MiB" >&2
  exit 1
fi
