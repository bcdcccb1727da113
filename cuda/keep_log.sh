#!/usr/bin/env bash
# Launches the compiler of a .cu file: keep_log.sh [ccache] nvcc ... -o <object> ...
# All it says, and the seconds of CPU it took, are kept in <object>.log, where tests/test_resources.py
# reads the registers and spills of every kernel. The terminal shows warnings and errors only.
set -u
for ((i = 1; i < $#; ++i)); do
  [ "${!i}" != -o ] || { next=$((i + 1)); log=${!next}.log; }
done
TIMEFORMAT='seconds %U %S'
{ time "$@" >"$log" 2>&1; } 2>>"$log"
status=$?
sed '/^ptxas info /d; /^ *[0-9]* bytes stack frame/d; /^seconds /d' "$log" >&2
exit $status
