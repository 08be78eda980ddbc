#!/bin/sh
# Run `unmask COMMAND --config_path CONFIG_PATH` in one process per device of a rank table (the JSON of hccl_tools),
# under msrun (MindSpore) or torchrun (PyTorch). Called by pretrain_, finetune_ and eval_distribute.sh.
#
#   ENGINE       mindspore or torch; default: mindspore where msrun is on the PATH
#   SERVER_ID    position of this machine in the table, default 0; with several machines, start this on each of them
#   MASTER_PORT  free port of the first machine, default 8118
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

server=${SERVER_ID:-0}
port=${MASTER_PORT:-8118}
if [ -z "${ENGINE:-}" ]; then
    if command -v msrun >/dev/null; then ENGINE=mindspore; else ENGINE=torch; fi
fi

# The numbers of machines, of all devices and of those here; the address of the first machine; the devices here.
read_table='
import json, sys
servers = json.load(open(sys.argv[1]))["server_list"]
here = [device["device_id"] for device in servers[int(sys.argv[2])]["device"]]
first = servers[0]["server_id"] if len(servers) > 1 else "127.0.0.1"
print(len(servers), sum(len(server["device"]) for server in servers), len(here), first, ",".join(here))
'
table=$(python3 -c "$read_table" "$rank_table" "$server" 2>/dev/null) ||
    fail "$rank_table is not a rank table that holds machine $server (SERVER_ID)"
read -r machines all here first devices <<EOF
$table
EOF

export ASCEND_RT_VISIBLE_DEVICES="$devices"
unset RANK_TABLE_FILE # the launchers connect the processes themselves
set -- "$command" --config_path="$config" --use_parallel True --engine "$ENGINE" "$@"
echo "$ENGINE: $here of $all processes on machine $server of $machines: unmask $*"
case $ENGINE in
mindspore)
    # msrun starts a bare `python`: that of this environment must be the first on the PATH.
    exec msrun --worker_num="$all" --local_worker_num="$here" --master_addr="$first" --master_port="$port" \
        --node_rank="$server" --log_dir="${command}_parallel" --join=True python -m unmask "$@"
    ;;
torch)
    exec torchrun --nnodes="$machines" --nproc_per_node="$here" --node_rank="$server" \
        --master_addr="$first" --master_port="$port" -m unmask "$@"
    ;;
*) fail "ENGINE=$ENGINE: mindspore or torch" ;;
esac
