"""A job: the training command with what every launcher adds to it, and the script that a worker runs it with."""

import shlex
from dataclasses import dataclass

from launch.machines import Machine

STOPPED = 75  # exit code of a run that was asked to stop and saved: start it again


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run to launch.

    name: names its files and cloud resources: lower-case letters, digits and "-". overrides: of the config, as given.
    environment: variables besides those of the machine. cache: a folder for compiled programs that all workers and all
    restarts share, None for the config's own. restarts: how often a run that crashed is started again; one that exits
    with 75 is started again always. commit: of the code, for the run's record. python: the interpreter on a worker.
    datasets: a gs:// folder that is copied to `datasets` on every worker first, None for none.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()
    machine: Machine | None = None
    environment: tuple[tuple[str, str], ...] = ()
    cache: str | None = None
    restarts: int = 10
    commit: str = ""
    python: str = "python3"
    datasets: str | None = None

    def command(self) -> tuple[str, ...]:
        """The training command; the cache comes first, so that an override of the job can change it."""
        cache = (f"train.compilation_cache={self.cache}",) if self.cache else ()
        return (self.python, "-m", "train.main", "--config", self.config, *cache, *self.overrides)

    def place(self) -> str:
        """Where the overrides let checkpoints go: checkpoint.path, where it is given, or run_dir; "" for neither."""
        given = {name: value.strip("'\"") for name, _, value in (one.partition("=") for one in self.overrides)}
        return given.get("checkpoint.path") or given.get("run_dir", "")

    def check_shared(self) -> None:
        """Refuses several hosts, or machines that may go away, without a place for checkpoints that outlives them."""
        if "://" not in self.place() and not self.place().startswith("/"):
            raise ValueError(
                "add checkpoint.path=gs://BUCKET/FOLDER, or run_dir=/FOLDER on a disk that all hosts share: every host "
                "has a disk of its own, and a checkpoint is written by all of them"
            )

    def variables(self) -> dict[str, str]:
        """Every variable that the command runs with."""
        machine = self.machine.environment() if self.machine else {}
        return machine | ({"SLUICE_COMMIT": self.commit} if self.commit else {}) | dict(self.environment)


WORKER = """\
#!/usr/bin/env bash
# {name} on one worker. worker.sh start: clear the chips, run, follow; follow: the log, and its exit code at the end;
# stop: save and end. A run that exits with 75 is started again, one that crashes {restarts} times at most. A second
# start of the same copy only follows: where a connection broke, nobody knows how far the first one came.
set -uo pipefail
folder=$(cd "$(dirname "$0")" && pwd)
{exports}

clear_chips() {{  # processes of an earlier run that still hold the chips
  local held
  for signal in TERM KILL; do
    held=$(sudo lsof -t /dev/accel* /dev/vfio/* /dev/nvidia[0-9]* 2>/dev/null | sort -u)
    [ -z "$held" ] && break
    echo "worker: ending earlier processes" $held
    sudo kill -"$signal" $held
    for _ in $(seq 60); do sudo kill -0 $held 2>/dev/null || break; sleep 1; done
  done
  sudo rm -f /tmp/libtpu_lockfile
}}

prepare() {{  # the code, and its packages where they changed
  cd "$folder" && rm -rf code.new && mkdir code.new && tar -xzf code.tar.gz -C code.new || return 1
  for kept in runs datasets; do mkdir -p "$folder/$kept" && ln -sfn "$folder/$kept" code.new/$kept; done
  rm -rf code && mv code.new code && cd code || return 1{datasets}
  if [ ! -x "$folder/venv/bin/python3" ]; then
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      python3 -m venv "$folder/venv" || return 1
    else  # TPU VM images bring 3.10
      python3 -m pip install --quiet --user uv && python3 -m uv venv --seed --python 3.12 "$folder/venv" || return 1
    fi
  fi
  export PATH="$folder/venv/bin:$PATH"
  cat requirements.txt launch/requirements-{kind}.txt | cmp -s - "$folder/installed.txt" && return 0
  pip install --quiet -r launch/requirements-{kind}.txt || return 1
  cat requirements.txt launch/requirements-{kind}.txt > "$folder/installed.txt"
}}

run() {{
  local stopping= interrupted= child= code= crashes=0
  trap 'stopping=1; interrupted=1; [ -n "$child" ] && kill -TERM "$child" 2>/dev/null' TERM INT
  for try in 1 2 3 4 5; do  # the other workers wait for this one: a network that fails once ends nothing
    prepare && break
    echo "worker: the code, its packages or its datasets could not be brought here (try $try of 5)"
    [ "$try" -eq 5 ] && {{ echo 1 > "$folder/exit_code"; exit 1; }}
    sleep "${{SLUICE_RESTART_SECONDS:-10}}"
  done
  while :; do
    clear_chips
    [ -n "$stopping" ] && {{ code={stopped}; break; }}  # asked between two runs
    {command} &
    child=$!
    [ -n "$stopping" ] && kill -TERM "$child" 2>/dev/null  # asked while it began
    while :; do  # a signal ends `wait`, not the run
      interrupted=
      wait "$child"; code=$?
      [ -z "$interrupted" ] && break
    done
    [ "$code" -eq 0 ] || [ -n "$stopping" ] && break
    if [ "$code" -ne {stopped} ]; then
      crashes=$((crashes + 1))
      [ "$crashes" -gt {restarts} ] && break
    fi
    echo "worker: the run ended with $code, starting it again"
    sleep "${{SLUICE_RESTART_SECONDS:-10}}"
  done
  echo "$code" > "$folder/exit_code"
  exit "$code"
}}

alive() {{  # and not another process that has its number since a boot
  [ -f "$1/pid" ] && grep -qs worker.sh "/proc/$(cat "$1/pid")/cmdline"
}}

begin() {{  # one at a time
  flock 9
  [ "$folder/pid" -nt "$0" ] && return  # this copy of the code was begun
  for job in "$folder"/../*; do  # of an earlier start, and others, which would end this one to start theirs again
    stop "$job" && echo "worker: waiting for $(basename "$job") to save" &&
      for _ in $(seq 300); do alive "$job" || break; sleep 1; done
  done
  rm -f "$folder/exit_code"; : > "$folder/worker.log"
  setsid nohup bash "$0" run >> "$folder/worker.log" 2>&1 < /dev/null 9>&- &
  echo $! > "$folder/pid"
}}

follow() {{
  tail -n +1 -f --pid="$(cat "$folder/pid")" "$folder/worker.log"
  exit "$(cat "$folder/exit_code" 2>/dev/null || echo 1)"
}}

stop() {{
  alive "$1" && kill -TERM "$(cat "$1/pid")" 2>/dev/null
}}

case "${{1:-run}}" in
  run) run ;;
  start) begin 9> "$folder/lock"; follow ;;
  follow) follow ;;
  stop) stop "$folder" ;;
esac
"""


def worker_script(job: Job) -> str:
    """The script that runs the job on one worker, beside code.tar.gz, and keeps it running."""
    machine = job.machine
    return WORKER.format(
        name=job.name,
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in job.variables().items()),
        kind=machine.about.kind if machine else "tpu",
        datasets=f'\n  gcloud storage rsync --recursive {shlex.quote(job.datasets)} "$folder/datasets" || return 1'
        if job.datasets
        else "",
        command=shlex.join(job.command()),
        stopped=STOPPED,
        restarts=job.restarts,
    )
