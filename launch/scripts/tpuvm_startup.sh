#!/usr/bin/env bash
# The startup script of a TPU VM's hosts: installs the code and trains, at every boot.
#
# The machine's metadata says what and where:
#   imb-command       the command, an argument a line     imb-logs   gs:// folder for the logs
#   imb-env           NAME=VALUE lines                    imb-code   gs:// .tar.gz of the code
#   imb-secrets       NAME=SECRET pairs: secrets of Secret Manager
#   imb-max-restarts  how often to start again
set -uo pipefail

metadata=${IMB_METADATA:-http://metadata.google.internal/computeMetadata/v1/instance/attributes}
home=${IMB_HOME:-/opt/imbalance_jax}

# Prints an attribute of the machine, or nothing where it has none.
attribute() {
  curl --silent --fail --retry 5 --retry-connrefused -H 'Metadata-Flavor: Google' \
    "$metadata/$1" || true
}

mkdir -p "$home" && cd "$home" || exit 1
host=$(attribute agent-worker-number)
logs=$(attribute imb-logs)
max_restarts=$(attribute imb-max-restarts)
mapfile -t command < <(attribute imb-command)
log=$home/host-${host:-0}-$(date +%Y%m%d-%H%M%S).log
exec >>"$log" 2>&1

upload() {
  gcloud storage cp --quiet "$log" "$logs/" >/dev/null 2>&1
}
while sleep "${IMB_UPLOAD_SECONDS:-60}"; do upload; done &
uploader=$!
trap 'kill "$uploader" 2>/dev/null; upload' EXIT

while IFS= read -r line; do
  [[ -n $line ]] && export "${line?}"
done < <(attribute imb-env)
for pair in $(attribute imb-secrets); do
  value=$(gcloud secrets versions access latest --secret="${pair#*=}") || {
    echo "error: secret ${pair#*=} cannot be read"
    exit 2
  }
  export "${pair%%=*}=$value"
done

install() {
  gcloud storage cp --quiet "$(attribute imb-code)" code.tar.gz &&
    mkdir -p code && tar -xzf code.tar.gz -C code &&
    python3 -m venv venv && venv/bin/pip install --quiet './code[tpu,gcs]' &&
    touch installed
}
if [[ ! -e installed ]] && ! install; then
  echo 'error: the code cannot be installed'
  exit 2
fi
export PATH=$home/venv/bin:$PATH PYTHONUNBUFFERED=1
ulimit -n "$(ulimit -H -n)"

# A machine that is taken away ends this script alone; the command is to save, and not to start
# again here.
stopping='' child=''
# shellcheck disable=SC2317 # the trap calls it
stop() {
  stopping=yes
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM

for ((restarts = 0; ; restarts++)); do
  "${command[@]}" &
  child=$!
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # the trap ended the wait, not the command
    wait "$child"
    code=$?
  done
  echo "exit code $code after $restarts restarts"
  [[ -z $stopping ]] || break
  ((code == 75 || code >= 128)) || break
  ((restarts < max_restarts)) || break
  sleep "${IMB_RESTART_SECONDS:-10}"
done
exit "$code"
