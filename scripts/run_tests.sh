#!/usr/bin/env bash
# All tests in less time: file by file in several processes, and then, one after the other, those that want the machine for
# themselves. Most tests wait for servers, so there is one process more than cores, unless WORKERS says otherwise.
# Side by side they are late for each other: what failed there is judged by one run by itself, which names it.
# Arguments are pytest's: scripts/run_tests.sh test/cli -x
set -u
unset PYTHONDONTWRITEBYTECODE # hundreds of processes are started, and each would compile everything anew
python=${TEST_PYTHON:-.venv/bin/python}
workers=${WORKERS:-$(("$("$python" -c 'import psutil; print(psutil.cpu_count(logical=False) or 1)')" + 1))}
failed=$(mktemp -d)
trap 'rm -rf "$failed"' EXIT
# as pyproject.toml has it, which keeps no cache
remember=(-o "addopts=-q --strict-markers --strict-config" -o "cache_dir=$failed")

"$python" -m pytest -n "$workers" --dist loadfile -m "not alone" "${remember[@]}" "$@"
together=$?
case $together in 0 | 1 | 5) ;; *) exit $together ;; esac # 1: some failed, 5: there are none; else it was broken off
if [ $together -eq 1 ]; then
  echo "-- what failed beside others, once more by itself: --"
  "$python" -m pytest -vv -m "not alone" --last-failed --last-failed-no-failures none "${remember[@]}" "$@"
  together=$?
  if [ $together -eq 5 ]; then together=1; fi # it was no test that failed
fi
"$python" -m pytest -m alone "$@"
alone=$?
if [ $alone -eq 5 ]; then exit $together; fi
if [ $together -eq 5 ] || [ $together -eq 0 ]; then exit $alone; fi
exit $together
