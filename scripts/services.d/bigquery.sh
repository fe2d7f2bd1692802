# shellcheck shell=bash
# A BigQuery emulator: REST, and gRPC for the Storage APIs, without TLS and credentials.

bigquery_address() { echo "127.0.0.1:$bigquery_rest_port,$bigquery_grpc_port"; }

bigquery_start() {
  local dir
  dir=$(dir_of "$1")
  need_port "$bigquery_rest_port" SERVICES_BIGQUERY_REST_PORT
  need_port "$bigquery_grpc_port" SERVICES_BIGQUERY_GRPC_PORT
  python_venv
  mkdir -p "$dir/data" "$dir/home"
  # a home of its own: DuckDB keeps its extensions there
  launch "$1" env HOME="$dir/home" PYTHONUNBUFFERED=1 "$home/venv/bin/python" "$here/bq_serve.py" --host 127.0.0.1 \
    --port "$bigquery_rest_port" --grpc-port "$bigquery_grpc_port" --data-dir "$dir/data" --project "$bigquery_project"
}

bigquery_ready() {
  listening "$bigquery_grpc_port" && [ "$(bigquery_answer 2>/dev/null)" = 200 ]
}

bigquery_answer() (
  exec 3<>"/dev/tcp/127.0.0.1/$bigquery_rest_port"
  printf 'GET /bigquery/v2/projects/%s/datasets HTTP/1.0\r\n\r\n' "$bigquery_project" >&3
  read -r -t 5 _ status _ <&3 && echo "$status"
)

# One venv for the emulator, the demo and the tests, brought up to date when what it is to hold changes.
python_venv() {
  local python want
  want=$(cat "$here"/requirements-*.txt | sha256sum)
  [ "$(cat "$home/venv/.requirements" 2>/dev/null)" != "$want" ] || return 0
  python=$(python_313) || die "Python 3.13 not found; 'pyenv install 3.13', or name one by SERVICES_PYTHON"
  say "installing Python packages: the BigQuery emulator and others"
  # --no-deps: the files name the whole set
  "$python" -m venv "$home/venv" &&
    "$home/venv/bin/pip" install -q --disable-pip-version-check --no-deps -r "$here/requirements-bigquery.txt" \
      -r "$here/requirements-demo.txt" -r "$here/requirements-tests.txt" >&2 && "$home/venv/bin/pip" check -q >&2 ||
    die "the Python packages could not be installed in $home/venv"
  echo "$want" >"$home/venv/.requirements"
}

python_313() {
  local python
  for python in ${SERVICES_PYTHON:-} python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13.*/bin/python; do
    "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null && echo "$python" && return
  done
  return 1
}
