"""Schedules for other batch sizes, and in epochs."""

import psis_d2  # noqa: F401
from psis_d2.engine.schedule import scale_to_batch, schedule_for
from psis_d2.engine.setup import build_config
from psis_d2.errors import UserError

import pytest
import train_net

from model_builders import tiny_config
from tiny_data import command_line, write_tiny_data


def paper(*overrides, config: str = "Base-RCNN-FPN.yaml"):
    """Detectron2's 1x schedule: 16 images, rate 0.02, 90,000 iterations, 1,000 of warm-up."""
    return tiny_config(*overrides, config=config)


def schedule(cfg) -> tuple:
    solver = cfg.SOLVER
    return solver.BASE_LR, solver.MAX_ITER, tuple(solver.STEPS), solver.WARMUP_ITERS


def test_a_smaller_batch_takes_smaller_and_more_steps():
    cfg = paper("SOLVER.IMS_PER_BATCH", 2)
    sentence = scale_to_batch(cfg, 16, [])
    assert schedule(cfg) == (0.0025, 720000, (480000, 640000), 8000)
    assert sentence.startswith(
        "SOLVER.IMS_PER_BATCH is 2 and not the config's 16: BASE_LR 0.02 -> 0.0025, MAX_ITER 90000 "
    )


def test_the_rate_of_adamw_goes_with_the_root():
    cfg = paper("SOLVER.IMS_PER_BATCH", 4, "SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.001)
    scale_to_batch(cfg, 16, [])
    assert cfg.SOLVER.BASE_LR == 0.0005


def test_what_the_command_line_sets_stays():
    cfg = paper("SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.01)
    scale_to_batch(cfg, 16, ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.01"])
    assert schedule(cfg) == (0.01, 720000, (480000, 640000), 8000)
    cfg = paper("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 100)
    scale_to_batch(cfg, 16, ["SOLVER.MAX_ITER", "100"])
    assert schedule(cfg) == (0.0025, 100, (60000, 80000), 1000)


@pytest.mark.parametrize(
    "opts",
    [("SOLVER.IMS_PER_BATCH", 16), ("SOLVER.IMS_PER_BATCH", 2, "SOLVER.SCALE_TO_BATCH", False)],
)
def test_the_same_batch_and_the_flag_leave_everything(opts):
    cfg = paper(*opts)
    assert scale_to_batch(cfg, 16, []) is None
    assert schedule(cfg) == (0.02, 90000, (60000, 80000), 1000)


@pytest.mark.usefixtures("catalogs")
def test_the_command_line_scales_and_says_so(tmp_path, capsys):
    data = write_tiny_data(tmp_path)
    line = command_line(data, tmp_path / "out")
    for key in ("SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS"):
        at = line.index(key)
        del line[at : at + 2]
    cfg = build_config(train_net.parse_arguments(line))  # 8 images in the file, 2 in the line
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (0.0005, 1600)
    assert cfg.SOLVER.STEPS == (1120, 1440)
    assert "SOLVER.IMS_PER_BATCH is 2 and not the config's 8" in capsys.readouterr().out


def test_epochs_are_iterations_of_the_training_images(monkeypatch):
    monkeypatch.setattr("psis_d2.engine.schedule.get_training_dicts", lambda cfg: [{}] * 470)
    cfg = paper("SOLVER.EPOCHS", 3.0, "SOLVER.IMS_PER_BATCH", 4)
    cfg.freeze()
    planned = schedule_for(cfg)
    # 3 * 470 / 4 = 352.5; steps at 2/3 and 8/9 of it, as of the 90,000
    assert schedule(planned) == (0.02, 353, (235, 314), 4)
    assert planned.is_frozen()
    assert cfg.SOLVER.MAX_ITER == 90000


def test_a_longer_run_does_not_need_a_longer_warm_up(monkeypatch):
    monkeypatch.setattr("psis_d2.engine.schedule.get_training_dicts", lambda cfg: [{}] * 160)
    cfg = paper("SOLVER.EPOCHS", 4.0, "SOLVER.MAX_ITER", 10, "SOLVER.STEPS", (5,))
    cfg.SOLVER.WARMUP_ITERS = 3
    assert schedule(schedule_for(cfg)) == (0.02, 40, (20,), 3)


def test_without_epochs_nothing_is_read_or_changed(monkeypatch):
    monkeypatch.setattr(
        "psis_d2.engine.schedule.get_training_dicts", lambda cfg: pytest.fail("read the data")
    )
    cfg = paper()
    assert schedule_for(cfg) is cfg
    cfg.SOLVER.EPOCHS = -1.0
    with pytest.raises(UserError, match="SOLVER.EPOCHS is -1"):
        schedule_for(cfg)
