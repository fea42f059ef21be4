#!/usr/bin/env bash
# Makes .venv at the repository root with the pinned requirements and this package (editable).
# A no-op when nothing changed since the last complete set-up.
#   PYTHON  interpreter used to create .venv (default: python3)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
py=$venv/bin/python
stamp=$venv/.setup-done
unfinished=$venv/.setup-unfinished

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}

# The root is part of the key because the editable install points at it (a copied checkout),
# the interpreter because packages are bound to its version (an upgraded system Python).
key() {
    printf '%s\n' "$root" "$(readlink -f "$py")"
    cat "$root/requirements.txt" "$root/setup.cfg" "$root/pyproject.toml" | cksum
}
is_done() { [[ -x $py && -f $stamp && $(key) == "$(<"$stamp")" ]]; }

if is_done; then exit 0; fi

# One set-up at a time. The lock is on the directory itself, so it leaves no file behind; where
# the file system refuses that (some NFS mounts), go on without it.
if command -v flock >/dev/null; then
    exec 9<"$root"
    if ! flock -n 9 2>/dev/null; then
        say "waiting for another set-up of this checkout"
        flock 9 2>/dev/null || say "this file system has no locks; going on without"
    fi
    if is_done; then exit 0; fi
fi

# The caller's Python settings must not leak into the new environment.
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# A pip that was killed can leave a package that looks installed but is not whole, so an
# interrupted set-up starts over (pip's cache makes that cheap).
clear=()
if [[ -e $unfinished ]]; then
    say "the last set-up did not finish; starting .venv over"
    clear=(--clear)
fi
if [[ ${#clear[@]} -gt 0 ]] || ! "$py" -m pip --version >/dev/null 2>&1; then
    base=${PYTHON:-python3}
    command -v "$base" >/dev/null ||
        die "$base not found; install Python 3.10 or newer, or set PYTHON to its path"
    version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
        die "$base does not run"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$base is Python $version; 3.10 or newer is needed (set PYTHON to its path)"
    "$base" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$base cannot create virtual environments; on Debian or Ubuntu install the package" \
            "python3-venv (python$version-venv for this interpreter), then run this again"
    say "creating .venv with Python $version"
    mkdir -p "$venv"
    # Before the first write, and again after: --clear removes it.
    touch "$unfinished"
    "$base" -m venv "${clear[@]+"${clear[@]}"}" "$venv"
fi
touch "$unfinished"
rm -f "$stamp"
"$py" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die ".venv has a Python older than 3.10; remove .venv and run this again"

# Twice quiet: errors only, none of the warnings about the configured package indexes.
pip() { "$py" -m pip install -qq "$@"; }

# torch goes first, by its pin, so that nothing that depends on it picks another build.
mapfile -t first < <(grep -E '^(torch|setuptools|wheel)==' "$root/requirements.txt")
say "installing ${first[*]}"
pip "${first[@]}"

# deepspeed comes as source: build it against the torch just installed (an isolated build could
# fetch another one) and without its compiled ops, which need a compiler.
say "installing the other requirements"
DS_BUILD_OPS=0 pip --no-build-isolation -r "$root/requirements.txt"

say "installing latentwire (editable)"
pip --no-deps --no-build-isolation -e "$root"

"$py" - <<'EOF'
import torch

build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
if torch.version.hip:
    build = f"ROCm {torch.version.hip}"
print(f"setup: torch {torch.__version__}, {build} build, {torch.cuda.device_count()} GPU(s) visible")
EOF

key >"$stamp.new"
rm -f "$unfinished"
mv "$stamp.new" "$stamp"
say "done"
