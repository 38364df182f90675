#!/usr/bin/env bash
# On every node that `ray up` makes: Python 3.11 and medray in the versions of constraints.txt, in ~/.venv.
# ~/medray is the checkout that the launcher has copied. Runs again without harm, and does nothing when nothing changed.
set -euo pipefail

project=$HOME/medray
venv=$HOME/.venv

if ! command -v python3.11 >/dev/null; then
    if command -v dnf >/dev/null; then # Amazon Linux 2023 has it as a package
        sudo dnf install --assumeyes --quiet python3.11
    else # Ubuntu 24.04 has 3.12 only
        sudo apt-get update -qq
        sudo apt-get install -qq --yes python3-venv
        python3 -m venv "$HOME/.uv"
        "$HOME/.uv/bin/pip" install --quiet uv==0.13.9
        "$HOME/.uv/bin/uv" python install 3.11.15
    fi
fi
python=$(command -v python3.11 || "$HOME/.uv/bin/uv" python find 3.11)

# a node without a GPU takes the torch that is 3 GB smaller: 2.13.0+cpu, which constraints.txt accepts
index=()
command -v nvidia-smi >/dev/null || index=(--extra-index-url https://download.pytorch.org/whl/cpu)

[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check "${index[@]}" \
    --constraint "$project/constraints.txt" "$project" "$@"
"$venv/bin/pip" check

chmod 0700 "$HOME/.ray"
chmod 0600 "$HOME/.ray/auth_token"

# what the launcher's commands, `ray attach` and `ray exec` find
if ! grep -q 'medray: environment' "$HOME/.bashrc"; then
    cat >>"$HOME/.bashrc" <<'END'
# medray: environment
export PATH="$HOME/.venv/bin:$PATH" RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 ORT_DISABLE_TELEMETRY=1
END
fi
