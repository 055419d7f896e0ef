#!/bin/sh
# The embedded judge, from nothing but packages, on two CPU cores: measure the base and what needs no judge, warm up,
# reinforce, measure, keep whichever is better on dev, put it into the package, and measure it there.
#
#   sh recipes/judge/run_cpu.sh            # a few hours; interrupted, the same command goes on
#   sh recipes/judge/run_cpu.sh tiny       # every step on a handful of examples: minutes, and no judge
#
# PYTHON, RUNS (folder of all that is made) and ADAPTER (where the judge is put) may be set. A step whose result is there is
# not done again.
set -eu
# glibc gives every large buffer back to the system at once and asks for it anew, which costs a sixth of the time.
export MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_TOP_PAD_=268435456
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
RUNS=${RUNS:-runs/cpu}
BASE="--set tasks.film_pairs.eval_count=100 --set tasks.amazon_pairs.eval_count=100"
SFT= RL= EVAL= ADAPTER_DEFAULT=mrjudge_reward/engines/adapters/smollm2-135m-sentiment-pairs
if [ "${1:-}" = tiny ]; then
    RUNS=$RUNS-tiny
    ADAPTER_DEFAULT=$RUNS/adapter
    SFT="--set tasks.film_pairs.count=4 --set tasks.tweet_pairs.count=2 --set tasks.editorial_pairs.count=2
        --set tasks.film_alone.count=2 --set training.max_steps=1 --set training.per_device_train_batch_size=2"
    RL="--set tasks.film_pairs.count=4 --set tasks.tweet_pairs.count=2 --set tasks.film_alone.count=4
        --set tasks.film_pairs.eval_count=1 --set tasks.tweet_pairs.eval_count=1 --set tasks.film_alone.eval_count=1
        --set training.max_steps=1 --set training.eval_steps=1 --set training.save_steps=1
        --set training.per_device_train_batch_size=4 --set training.num_generations=2
        --set training.per_device_eval_batch_size=10"
    EVAL="--set tasks.film_pairs.eval_count=2 --set tasks.film_alone.eval_count=1 --set tasks.amazon_pairs.eval_count=1
        --set tasks.amazon_alone.eval_count=1"
    BASE=
fi
ADAPTER=${ADAPTER:-$ADAPTER_DEFAULT}

measure() { # NAME, settings
    measured=$RUNS/$1
    shift
    [ -f "$measured/report.json" ] ||
        "$PYTHON" -m recipes.evaluate.judge recipes/evaluate/eval_cpu.yaml $EVAL "$@" --out "$measured"
}

accuracy() { # mean accuracy of a report's tasks
    "$PYTHON" -c 'import json, sys
tasks = json.load(open(sys.argv[1]))["tasks"].values()
print(sum(task["accuracy"][0] for task in tasks) / len(tasks))' "$1"
}

[ -f "$RUNS/baselines/report.json" ] ||
    "$PYTHON" -m recipes.evaluate.baselines recipes/evaluate/eval_cpu.yaml $EVAL --train recipes/judge/sft_cpu.yaml \
        --out "$RUNS/baselines"
[ -f "$RUNS/sft/recipe.json" ] ||
    "$PYTHON" -m recipes.judge.train_sft recipes/judge/sft_cpu.yaml $SFT --set training.output_dir="$RUNS/sft"
[ -f "$RUNS/rl/recipe.json" ] ||
    "$PYTHON" -m recipes.judge.train_rl recipes/judge/rl_cpu.yaml $RL --set adapter="$RUNS/sft" \
        --set training.output_dir="$RUNS/rl"

# Measured as they would be in the package. Which of the two is kept is decided by dev pairs of film reviews alone.
for name in sft rl; do
    packed=$RUNS/$name-packed
    [ -f "$packed/README.md" ] || "$PYTHON" -m recipes.judge.pack_adapter "$RUNS/$name" --out "$packed"
    measure $name-dev --set judge.adapter="$packed" --set split=dev --set tasks.film_alone=null \
        --set tasks.amazon_pairs=null --set tasks.amazon_alone=null
    measure $name-test --set judge.adapter="$packed"
done
# The base names one slot whatever it is shown, which a hundred pairs show as well as five hundred.
measure base $BASE
best=sft
if [ "$(printf '%s\n%s\n' "$(accuracy "$RUNS/sft-dev/report.json")" "$(accuracy "$RUNS/rl-dev/report.json")" |
    sort -g | tail -1)" = "$(accuracy "$RUNS/rl-dev/report.json")" ]; then
    best=rl
fi
echo "kept: $best"
"$PYTHON" -m recipes.judge.pack_adapter "$RUNS/$best" --out "$ADAPTER" --report "$RUNS/$best-test/report.json"
"$PYTHON" -m recipes.evaluate.table "$RUNS"
