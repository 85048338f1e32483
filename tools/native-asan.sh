#!/bin/sh
# Runs the native tests on an addon built with AddressSanitizer, in build/asan; build/Release is left alone.
# It fails on a test that fails, on any report of a memory error, and on leaks of the addon's own allocations.
#
# Node frees little of its own at exit, and the stack of every leak goes through Node. So the leak reports are read here:
# a leak is ours when the first frame outside the sanitizer and libstdc++ is in forkd_native.node.
set -eu
cd "$(dirname "$0")/.."
test -f build/Makefile || { echo "build/Makefile is missing: run 'node-gyp configure' first" >&2; exit 2; }

out=$PWD/build/asan
rm -rf "$out/log" && mkdir -p "$out/log"
make -s -C build forkd_native builddir="$out" CXXFLAGS='-fsanitize=address -fno-omit-frame-pointer -g -O1' \
  LDFLAGS='-fsanitize=address'
npx --no-install tsc -p . || echo 'tsc reports errors (above); going on with what it emitted' >&2

export FORKD_NATIVE_PATH="$out/forkd_native.node"
export LD_PRELOAD="$(g++ -print-file-name=libasan.so)"
# Leaks alone leave the exit code as it is; memory errors do not.
# %m, the module, is what the reading of leaks goes by: with debug information the default format leaves it out.
export ASAN_OPTIONS="detect_leaks=1:log_path=$out/log/report:stack_trace_format='    #%n %m %f %S'"
export LSAN_OPTIONS='exitcode=0'

failed=0
for test in dist/test/native/*.test.js; do
  timeout 300 node "$test" || { echo "FAILED: $test" >&2; failed=1; }
done
unset LD_PRELOAD

for report in "$out"/log/report.*; do
  test -e "$report" || continue
  if grep -q 'ERROR: AddressSanitizer' "$report"; then
    cat "$report" >&2
    failed=1
  fi
  awk '
    / leak of / { block = $0; undecided = 1; next }
    undecided && /^ *#[0-9]+ / {
      block = block "\n" $0
      if ($2 ~ /libasan|libstdc\+\+/) next
      undecided = 0
      if ($2 ~ /forkd_native\.node/) { print FILENAME ":\n" block; ours = 1 }
    }
    END { exit ours }
  ' "$report" >&2 || failed=1
done
test "$failed" = 0 && echo 'AddressSanitizer: nothing found'
exit "$failed"
