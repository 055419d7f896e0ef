"""verl trains SmolLM2-135M on a CPU with a judge as the reward: two steps of GRPO or PPO, in a few minutes.

    python -m recipes.verl.cpu.run grpo
    python -m recipes.verl.cpu.run ppo trainer.total_training_steps=4 data.max_response_length=32

The first argument names a config beside this file; what follows goes to verl as it is (Hydra overrides). Data and outputs
go to a new temporary folder, or to ``--out``: ``rollouts/`` has each step's completions with their rewards. Installing:
``make setup``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "mrjudge_reward.integrations.verl.without_trl,cpu_platform",
    # verl keeps its engines in a table by device; those for CUDA run here too.
    "VERL_ENGINE_DEVICE": "cuda",
    "VERL_ENGINE_VENDOR": "nvidia",
    # Ray believes in a GPU that vLLM and torch must not look for.
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Without it vLLM starts one process more per engine, whatever executor is named.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # So small a model gains nothing from threads, and there are a dozen processes.
    "OMP_NUM_THREADS": "1",
    # What little of torch and vLLM is compiled even in eager mode takes longer to compile than it would ever save.
    "TORCHDYNAMO_DISABLE": "1",
    # Ray would start a worker for each claimed CPU before any is asked for.
    "RAY_prestart_worker_first_driver": "0",
    "HF_HUB_OFFLINE": "1",
    "HYDRA_FULL_ERROR": "1",
}
"""Set for the run unless they are set already."""

OPENINGS = (
    "The film is", "The plot was", "I left the cinema", "Its music", "The leading actor", "The last scene",
    "The director", "Watching it again,",
)  # fmt: skip


def write_prompts(path: Path, split: str) -> None:
    """Write the openings as a data set of the form that verl reads."""
    from datasets import Dataset

    rows = [
        {
            "data_source": "openings",
            "prompt": [{"role": "user", "content": f"Continue this sentence of a film review: {opening}"}],
            "reward_model": {"style": "model", "ground_truth": ""},
            "extra_info": {"index": index, "split": split},
        }
        for index, opening in enumerate(OPENINGS)
    ]
    Dataset.from_list(rows).to_parquet(path)


def main() -> None:
    """Prepare model and data, and become verl's trainer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", choices=sorted(path.stem for path in HERE.glob("*.yaml") if path.stem != "cpu"))
    parser.add_argument("--out", type=Path, help="folder for data and outputs")
    arguments, overrides = parser.parse_known_args()

    from mrjudge_reward.engines.embedded import embedded_model_path

    out = (arguments.out or Path(tempfile.mkdtemp(prefix="mrjudge-verl-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    print(f"Data and outputs: {out}", file=sys.stderr)
    for split in ("train", "val"):
        write_prompts(out / f"{split}.parquet", split)
    environment = ENVIRONMENT | os.environ
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    command = [
        sys.executable, "-m", "verl.trainer.main_ppo", "--config-path", str(HERE), "--config-name", arguments.config,
        f"actor_rollout_ref.model.path={embedded_model_path()}",
        f"data.train_files={out}/train.parquet",
        f"data.val_files={out}/val.parquet",
        f"trainer.rollout_data_dir={out}/rollouts",
        f"trainer.default_local_dir={out}/checkpoints",
        f"hydra.run.dir={out}",
        *overrides,
    ]  # fmt: skip
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
