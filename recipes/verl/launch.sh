#!/usr/bin/env bash
# Checks a config and, if nothing failed, starts verl with it. Usage: launch.sh CONFIG.yaml [key=value ...]
set -euo pipefail
config=$(realpath -- "${1:?usage: launch.sh CONFIG.yaml [key=value ...]}")
shift
# TRL 1.16, if it is installed too, lacks a class that verl imports; see the module.
export VERL_USE_EXTERNAL_MODULES="${VERL_USE_EXTERNAL_MODULES:-mrjudge_reward.integrations.verl.without_trl}"
settings=()
for setting in "$@"; do
  settings+=(--verl-set "$setting")
done
mrjudge doctor --verl "$config" "${settings[@]}"
exec python -m verl.trainer.main_ppo --config-path "$(dirname -- "$config")" --config-name "$(basename -- "$config" .yaml)" "$@"
