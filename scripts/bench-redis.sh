#!/usr/bin/env bash
# The server beside Redis 7 under equal promises, with redis-benchmark: `synced` against
# `appendfsync always`, `interval` against `everysec`; 50 connections, 64-byte values, pipelines of 1
# and 16, one key and 100,000 random ones; on a quiet disk, then with another process writing
# 50 MB/s of buffered data beside it. Prints CSV: noise,server,load,command,requests/s,latencies.
#
#   cargo build --release -p atoll && scripts/bench-redis.sh target/release/atoll > rows.csv
#
# Needs redis-server and redis-benchmark (Debian: apt-get install redis-server redis-tools).
set -euo pipefail
atoll=$(realpath "${1:?usage: scripts/bench-redis.sh path/to/atoll [rounds]}")
rounds=${2:-3}
for tool in redis-server redis-benchmark; do
  command -v "$tool" >/dev/null || { echo "$tool is missing: install Redis 7 first" >&2; exit 1; }
done
dir=$(mktemp -d "${TMPDIR:-/tmp}/atoll-bench-redis.XXXXXX")
pids=()
finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir"
}
trap finish EXIT

mkdir "$dir/always" "$dir/everysec"
start() { "$@" >>"$dir/log" 2>&1 </dev/null & pids+=($!); }
start redis-server --port 6501 --dir "$dir/always" --appendonly yes --appendfsync always --save ""
start redis-server --port 6502 --dir "$dir/everysec" --appendonly yes --appendfsync everysec --save ""
start "$atoll" start --data "$dir/synced" --resp 127.0.0.1:6503 --http off --durability synced
start "$atoll" start --data "$dir/interval" --resp 127.0.0.1:6504 --http off --durability interval
sleep 3

load() { # noise server port name requests flags...
  redis-benchmark -p "$3" -n "$5" -c 50 -d 64 -t set,get,incr --csv "${@:6}" 2>/dev/null |
    tail -n +2 | sed "s/^/$1,$2,$4,/"
}
measure() { # noise requests at pipeline 1, and at 16
  for _ in $(seq "$rounds"); do
    for server in "redis-always 6501" "atoll-synced 6503" "redis-everysec 6502" "atoll-interval 6504"; do
      read -r name port <<<"$server"
      load "$1" "$name" "$port" "P1" "$2"
      load "$1" "$name" "$port" "P1 -r 100000" "$2" -r 100000
      load "$1" "$name" "$port" "P16" "$3" -P 16
      load "$1" "$name" "$port" "P16 -r 100000" "$3" -P 16 -r 100000
    done
  done
}
measure quiet 20000 100000
(while :; do dd if=/dev/zero of="$dir/noise" bs=1M count=50 conv=notrunc 2>/dev/null; sleep 0.9; done) &
pids+=($!)
measure noise 10000 50000
