"""What a script has to import."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_engine_brings_all_that_a_config_may_name():
    code = (
        "from psis_d2.config import add_psis_config\n"
        "from psis_d2.engine import Trainer\n"
        "from detectron2.config import get_cfg\n"
        "cfg = get_cfg()\n"
        "add_psis_config(cfg)\n"
        "cfg.merge_from_file('configs/quick/cpmask_shapes.yaml')\n"
        "cfg.MODEL.DEVICE = 'cpu'\n"
        "print(type(Trainer.build_model(cfg).roi_heads.mask_head).__name__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["CPMaskHead"], done.stderr
