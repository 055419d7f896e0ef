"""vLLM in process judges images: the real engine on a CPU, a small Qwen2.5-VL with random weights."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

TORCHVISION = Path(sys.prefix) / "torchvision-beside"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or not TORCHVISION.is_dir(),
    reason="vLLM and torchvision are not there: run make setup",
)


@pytest.mark.timeout(600)
def test_a_judge_in_vllm_sees_what_one_under_transformers_sees(smol_path: str):
    paths = [ROOT / "tests" / "support" / "torchvision_beside", TORCHVISION, ROOT]
    places = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.vllm_images_run", smol_path],
        env=os.environ | places, capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SAID "))[5:])
    red, blue, none, broken = said["vllm"]
    for ours, theirs in zip((red, blue, none), said["transformers"], strict=False):
        assert ours == pytest.approx(theirs, abs=2e-3)
    for served, ours in zip(said["server"], (red, blue, none), strict=False):
        assert served == pytest.approx(ours, abs=2e-3), "over HTTP"
    assert said["server"][3].startswith("image: ")
    assert abs(red[0] - blue[0]) > 0.01, "another picture, another verdict"
    assert abs(red[0] - none[0]) > 0.01
    assert broken.startswith("image: ")
    assert None not in said["scores"], said["verdicts"]
