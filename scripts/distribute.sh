#!/bin/sh
# Start `unmask COMMAND --config_path CONFIG_PATH` in the background, in one process per device of a rank table, under
# msrun (MindSpore) or torchrun (PyTorch). Called by pretrain_, finetune_ and eval_distribute.sh.
#
#   ENGINE       mindspore or torch; default: mindspore where msrun is on the PATH
#   SERVER_ID    position of this machine in the table, default 0; with several machines, start this on each of them
#   MASTER_PORT  free port of the first machine, default 8118
#
# Each process writes to train_parallel<rank>/log or eval<rank>/log in the folder this is started from.
set -eu

fail() {
    echo "error: $*" >&2
    exit 2
}

command=$1
shift
[ $# -ge 2 ] || fail "usage: sh ${command%uate}_distribute.sh RANK_TABLE_FILE CONFIG_PATH [--key value ...]"
rank_table=$1
config=$2
shift 2
[ -f "$rank_table" ] || fail "RANK_TABLE_FILE=$rank_table is not a file"
[ -f "$config" ] || fail "CONFIG_PATH=$config is not a file"

scripts=$(cd "$(dirname "$0")" && pwd)
server=${SERVER_ID:-0}
port=${MASTER_PORT:-8118}
if [ -z "${ENGINE:-}" ]; then
    if command -v msrun >/dev/null; then ENGINE=mindspore; else ENGINE=torch; fi
fi

# The numbers of machines, of all devices and of those here; the address of the first machine; the devices here.
read_table='
import sys
sys.path.insert(0, sys.argv[1])
from unmask.errors import ConfigError
from unmask.modelzoo.rank_table import read_rank_table
try:
    servers = read_rank_table(sys.argv[2])
except ConfigError as error:
    sys.exit(str(error))
number = int(sys.argv[3]) if sys.argv[3].isdecimal() else len(servers)
if number >= len(servers):
    sys.exit(f"SERVER_ID={sys.argv[3]}: the rank table has {len(servers)} machines, counted from 0")
here = servers[number].devices
first = servers[0].address if len(servers) > 1 else "127.0.0.1"
print(len(servers), sum(len(server.devices) for server in servers), len(here), first, ",".join(here))
'
table=$(python -c "$read_table" "$scripts/../src" "$rank_table" "$server" 2>&1) || fail "$table"
read -r machines all here first devices <<EOF
$table
EOF

case $command in
evaluate) logs=eval ;;
*) logs=train_parallel ;;
esac
export ASCEND_RT_VISIBLE_DEVICES="$devices"
unset RANK_TABLE_FILE # the launchers connect the processes themselves
set -- "$scripts/rank.py" "$logs" "$command" --config_path="$config" --use_parallel True --engine "$ENGINE" "$@"
case $ENGINE in
mindspore)
    # msrun numbers the processes of a machine as if every machine had as many.
    [ "$all" -eq $((here * machines)) ] || fail "msrun needs machines with the same number of devices; ENGINE=torch does not"
    # It starts a bare `python`: that of this environment must be the first on the PATH.
    set -- msrun --worker_num="$all" --local_worker_num="$here" --master_addr="$first" --master_port="$port" \
        --node_rank="$server" --log_dir="${logs}_msrun" --join=True "$@"
    ;;
torch)
    set -- torchrun --nnodes="$machines" --nproc_per_node="$here" --node_rank="$server" \
        --master_addr="$first" --master_port="$port" "$@"
    ;;
*) fail "ENGINE=$ENGINE: mindspore or torch" ;;
esac
nohup "$@" >"$logs.log" 2>&1 </dev/null &
echo "$ENGINE: $here of $all processes on machine $server of $machines, in the background; to stop them: kill $!"
echo "logs: ${logs}0/log and so on, by rank; what ${1##*/} says: $logs.log"
