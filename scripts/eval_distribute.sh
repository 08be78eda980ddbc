#!/bin/sh
# sh eval_distribute.sh RANK_TABLE_FILE CONFIG_PATH [--key value ...]
exec sh "$(dirname "$0")/distribute.sh" evaluate "$@"
