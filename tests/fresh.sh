#!/usr/bin/env bash
# Runs `make test`, set-up included, as on a machine that has never seen the project, and counts
# what it leaves. The tracked files, as they are in the working tree, are copied into an empty
# folder with a space in its name; home, caches and temporary files are new; of the environment only
# what is listed below is passed on. Red when a test fails or anything is left.
#
#   tests/fresh.sh                                  all tests; installs 2.7 GB
#   tests/fresh.sh tests/actors/pool -k quarantine  arguments go to pytest
#   FRESH_VENV=.venv tests/fresh.sh tests/stepwiser a quick try: runs pytest from that environment
#                                                   instead of `make test`, so set-up is not tried
#   FRESH_TARGETS='lint test' tests/fresh.sh        what is made, `test` by default
#
# Where namespaces may be made (by root, or by users where the kernel lets them), /tmp, /dev/shm and
# the list of processes are the run's own and empty at its start, so nothing of the machine's is
# leaned on and all that is there in the end is the run's. Elsewhere processes that bear the mark
# STEPWISER_FRESH count, and of what is new in the shared folders what programs of ours are known to
# make: start no other tests meanwhile.
set -euo pipefail

# Ray's sockets lie 64 characters below its folder, and their paths may have 107.
base=${FRESH_INSIDE:-}
copy="${base:-none}/check out"

# --- inside: the run and what is left of it -------------------------------------------------------

litter_in() { # names in a folder, but for those that were there
    [ ! -d "$1" ] || find "$1" -mindepth 1 -maxdepth 1 -printf '%p\n' | sort |
        comm -13 "$base/before-${1//\//-}" -
}

outside_folders() { # of those that all programs share; what anybody may have put there is no proof
    if [ -n "${FRESH_ALONE:-}" ]; then
        litter_in /dev/shm
        litter_in /tmp
        litter_in /tmp/ray
        return
    fi
    local name
    litter_in /dev/shm | while read -r name; do
        grep -qsF "$name" /proc/[0-9]*/maps || echo "$name"
    done
    litter_in /tmp | grep -E '^/tmp/(sw-|ray$|torchinductor|pytest-of-|uv-|vllm|wandb)' || true
}

processes() { # ids and commands of those of the run, into a file: a pipe would be one of them
    local entry line
    for entry in /proc/[0-9]*; do
        { [ "$entry" != /proc/$$ ] && read -r line < "$entry/stat"; } 2>/dev/null || continue
        [[ ${line##*) } != Z* ]] || continue
        # Titles that programs give themselves overwrite their environment; open files tell too.
        if [ -n "${FRESH_ALONE:-}" ] || grep -qsF "STEPWISER_FRESH=$base" "$entry/environ" ||
            find "$entry/fd" "$entry/cwd" -lname "$base/*" 2>/dev/null | grep -q .; then
            line=$(tr '\0' ' ' < "$entry/cmdline" 2>/dev/null | cut -c1-150) || true
            printf 'process %s %s\n' "${entry#/proc/}" "$line"
        fi
    done > "$base/processes"
}

left() { # writes down what there is to be found; false where that is nothing
    processes
    {
        cat "$base/processes"
        { outside_folders; litter_in "$base/t"; } | grep -vxF "$base" | sed 's/^/left behind: /'
        find . \( -name .git -o -name .venv -o -name __pycache__ -o -name '.*_cache' \) -prune -o \
            -not -type d -print | sort | comm -13 "$base/tracked" - | sed 's/^/in the checkout: /'
    } > "$base/left"
    [ -s "$base/left" ]
}

inside() {
    local began=$SECONDS status=0 deadline minutes name passed
    local -a clean=(
        HOME="$base/home" XDG_CACHE_HOME="$base/home/.cache" HF_HOME="$base/home/hf"
        TMPDIR="$base/t" RAY_TMPDIR="$base/t" STEPWISER_FRESH="$base"
    )
    # What a machine must tell set-up: programs, sources of packages, certificates, the way out.
    for name in $(compgen -e); do
        case ${name,,} in
            *_cache_dir) ;; # of the machine's own
            path | python | pip_* | uv_* | ssl_cert_* | requests_ca_bundle | curl_ca_bundle | \
                http_proxy | https_proxy | no_proxy | all_proxy)
                clean+=("$name=${!name}")
                ;;
        esac
    done
    if [ -n "${FRESH_ALONE:-}" ]; then
        # The folder keeps its name in a /tmp where it is alone.
        mkdir -p "$base/tmp/${base##*/}"
        mount --bind "$base" "$base/tmp/${base##*/}"
        mount --rbind "$base/tmp" /tmp
        mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    fi
    for name in /dev/shm /tmp /tmp/ray "$base/t"; do
        { [ ! -d "$name" ] || find "$name" -mindepth 1 -maxdepth 1 -printf '%p\n'; } | sort \
            > "$base/before-${name//\//-}"
    done

    cd "$copy"
    if [ -n "${FRESH_VENV:-}" ]; then
        set -- PYTHONPATH="$copy" "$FRESH_VENV/bin/pytest" "$@" # it knows another checkout
    else
        set -- make --no-print-directory ${FRESH_TARGETS:-test} \
            ARGS="$([ $# = 0 ] || printf '%q ' "$@" | sed 's/\$/$$/g')"
    fi
    # Not through a pipe, which a process that is left would keep open.
    : > "$base/log"
    env -i "${clean[@]}" "$@" > "$base/log" 2>&1 &
    name=$!
    trap "kill -TERM $name" TERM
    tail -n +1 -f --pid=$name "$base/log" &
    wait $name || status=$?
    wait $! || true

    deadline=$((SECONDS + 10)) # what is ending may end
    while left && [ $SECONDS -lt $deadline ]; do sleep 0.5; done
    [ ! -s "$base/left" ] || status=1
    counted() {
        grep -E '(passed|failed|skipped|error|deselected).* in [0-9.]+s' "$base/log" | tail -n 1 |
            grep -oE "[0-9]+ $1" | grep -oE '[0-9]+' || echo 0
    }
    passed=$(counted passed)
    [ "$passed" != 0 ] || status=1
    minutes=$((SECONDS - began))
    printf 'fresh: %d.%d minutes, %s passed, %s skipped, %s failed, %s errors; left: %s\n' \
        $((minutes / 60)) $((minutes % 60 / 6)) "$passed" "$(counted skipped)" \
        "$(counted failed)" "$(counted error)" "$(grep -c '' "$base/left" || true)"
    sed 's/^/fresh: left: /' "$base/left"
    while [ -z "${FRESH_ALONE:-}" ] && read -r _ name _; do
        kill -KILL "$name" 2>/dev/null || true
    done < "$base/processes"
    [ $status = 0 ] && echo 'fresh: green' || echo 'fresh: red'
    exit $status
}

# --- outside: the empty folder, and nothing around it ---------------------------------------------

outside() {
    local root alone hidden ending run status=0
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
    [ -z "${FRESH_VENV:-}" ] || FRESH_VENV=$(cd "$FRESH_VENV" && pwd -P)
    base=$(mktemp -d /tmp/swf-XXXXXX)
    copy="$base/check out"
    trap 'rm -rf "$base"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    mkdir -p "$copy" "$base/home" "$base/t"
    cd "$root"
    if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
        git ls-files -z
    else # a checkout without its history: all files but what set-up and runs make
        find . \( -name .venv -o -name runs -o -name __pycache__ -o -name '.*_cache' \) -prune -o \
            -type f -print0
    fi | while IFS= read -r -d '' name; do
        [ ! -e "$name" ] || printf '%s\0' "$name" # deleted, but not yet committed
    done | tar --null -T - -cf - | tar -xf - -C "$copy"
    (cd "$copy" && git init -q && git add -fA && find . -not -type d -not -path './.git/*' | sort) \
        > "$base/tracked"
    # The public data sets are no part of the project, and a machine may have them or not.
    if [ -d "$root/../shared/data" ]; then
        mkdir "$base/shared"
        ln -s "$root/../shared/data" "$base/shared/data"
    fi

    alone=(unshare --mount --pid --ipc --fork --kill-child --mount-proc)
    [ "$(id -u)" = 0 ] || alone+=(--user --map-root-user)
    export FRESH_INSIDE=$base FRESH_VENV=${FRESH_VENV:-}
    case "${FRESH_VENV}:${PYTHON:-}:${PIP_FIND_LINKS:-}:${UV_FIND_LINKS:-}:$root" in
        *:/tmp/* | /tmp/* | *file:///tmp/*) hidden=1 ;; # would be out of sight
        *) hidden= ;;
    esac
    if [ -z "$hidden" ] && "${alone[@]}" mount -t tmpfs tmpfs /dev/shm 2>/dev/null; then
        export FRESH_ALONE=1
        ending=KILL # unshare takes no other, and takes all along
        echo "fresh: $copy, with a /tmp, a /dev/shm and processes of its own"
        "${alone[@]}" "$BASH" "$root/tests/fresh.sh" "$@" &
    else
        ending=TERM
        echo "fresh: $copy, beside all else on this machine: no namespaces here"
        "$BASH" "$root/tests/fresh.sh" "$@" &
    fi
    # In the background, for the traps not to wait for its end.
    run=$!
    trap 'kill -$ending $run 2>/dev/null || true; wait $run || true; rm -rf "$base"' EXIT
    wait $run || status=$?
    exit $status
}

if [ -n "$base" ]; then inside "$@"; else outside "$@"; fi
