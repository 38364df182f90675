#!/usr/bin/env bash
# Make this machine the head or a worker of an on-prem cluster. Run it as root in a checkout at /srv/medray:
#
#   sudo cluster/onprem/install.sh head
#   sudo cluster/onprem/install.sh worker      # after copying /etc/medray/auth_token from the head
#
# It makes the user medray, /etc/medray (token, settings, run file), the virtual environment in the versions of
# constraints.txt, and the units. It starts nothing and changes no file in /etc/medray that is there. STAGE=DIR puts
# files below DIR and leaves users, packages and systemd alone, for a look before.
set -euo pipefail

role=${1:-}
stage=${STAGE:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
etc=$stage/etc/medray

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 2
}

case $role in
    head) units=(ray-head.service medray-nightly.service medray-nightly.timer) ;;
    worker) units=(ray-worker.service) ;;
    *) fail "expected head or worker, found '$role'" ;;
esac

owner=()
if [[ -z $stage ]]; then
    [[ $EUID -eq 0 ]] || fail "it has to run as root"
    [[ $project == /srv/medray ]] || fail "the units expect the checkout at /srv/medray, found $project"
    id medray >/dev/null 2>&1 || useradd --system --home-dir /var/lib/medray --shell /usr/sbin/nologin medray
    owner=(--owner=medray --group=medray)
fi

install --directory --mode=0755 "$etc" "$stage/etc/systemd/system"
[[ -e $etc/ray.env ]] || install --mode=0644 "$here/ray.env" "$etc/ray.env"

# The token: made once, on the head; the same on every machine. Only its owner may read it.
if [[ ! -e $etc/auth_token ]]; then
    [[ $role == head ]] || fail "copy $etc/auth_token from the head first: scp -p HEAD:$etc/auth_token $etc/"
    draft=$(mktemp)
    openssl rand -hex 32 >"$draft"
    install --mode=0600 "${owner[@]}" "$draft" "$etc/auth_token"
    rm -f "$draft"
fi
chmod 0600 "$etc/auth_token"
[[ -n $stage ]] || chown medray:medray "$etc/auth_token"

if [[ $role == head && ! -e $etc/nightly.toml ]]; then
    install --mode=0644 "$project/jobs/runs/breast_nightly.toml" "$etc/nightly.toml"
fi

for unit in "${units[@]}"; do
    install --mode=0644 "$here/$unit" "$stage/etc/systemd/system/$unit"
done

if [[ -z $stage ]]; then
    [[ -x $project/.venv/bin/python ]] || "${PYTHON:-python3.11}" -m venv "$project/.venv"
    "$project/.venv/bin/pip" install --quiet --constraint "$project/constraints.txt" "$project"
    systemctl daemon-reload
fi

cat <<END
Next: set HEAD_IP and NODE_IP in /etc/medray/ray.env, then
  systemctl enable --now ray-$role
END
if [[ $role == head ]]; then
    cat <<END
and for the nights: write /etc/medray/nightly.toml (paths below /mnt/medray or s3://), then
  systemctl enable --now medray-nightly.timer
END
fi
