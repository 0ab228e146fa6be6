"""What stands in the registry: sources, names, and that every override means something."""

import csv
import re
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.config_checks import value_of
from psis_d2.config_files import merge_options
from psis_d2.engine.setup import build_config
from psis_d2.errors import UserError
from psis_d2.experiments import all_experiments, find_experiments, papers
from psis_d2.experiments.commands import config_value
from psis_d2.experiments.page import ran_configs, render_page
from psis_d2.experiments.plot import CATEGORIES, MASKS, SHARE
from psis_d2.model_zoo import config_names

import pytest
from registry_lines import merged, model_of, of_file, parsed, trainings, word_vectors

ROOT = Path(__file__).parents[2]
EXPERIMENTS = all_experiments()
# Trained on data whose categories only its files know.
ELSEWHERE = ("vg_", "bdd100k_", "voc12_")
METRICS = {"AP", "AP50", "AP75", "APs", "APm", "APl"}
# Every table and figure that shows results, by hand from the papers.
TABLES = {
    "maskx": "1a 1b 1c 1d 2 fig3 fig4 fig5",
    "shapemask": "1 2 3 4 5 6 7 fig3 fig7 fig8 fig9 fig10 fig11",
    "cpmask": "1 2 3 4 fig1 fig6 fig7 fig8",
    "shapeprop": "1 2 3 4 fig4 fig6 fig7 fig8 fig9",
    "teacher_student": "1 2 3 4 5 fig2 fig3 fig6 fig8",
}

OTHER_PAPERS = ("contrastmask", "hourglass")
# Configs of the five methods and their baselines that are no row; their heads say so.
NO_ROWS = {
    *("maskrcnn_agnostic_mlp_R50", "maskrcnn_grabcut_unseen_R50", "maskrcnn_oracle_agnostic_R50"),
    *("maskrcnn_agnostic_vg3k_R101", "maskx_vg3k_joint_R101", "maskx_stagewise_R101"),
    *("shapemask_R50", "shapemask_paper_R101", "shapeprop_retinamask_R50", "teacher_student_R101"),
    *(f"shapemask_light{n}_agnostic_R101" for n in (16, 32, 64)),
}


def test_every_table_and_figure_is_there():
    assert {p.id: " ".join(t.id.split("/")[1] for t in p.tables) for p in papers()} == TABLES


def test_ids_are_unique_and_lead_to_one_experiment():
    ids = [x.id for x in EXPERIMENTS]
    assert len(set(ids)) == len(ids)
    for x in EXPERIMENTS[::17]:
        assert find_experiments(x.id) == [x]
    assert [x.split for x in find_experiments("maskx/1a/randn")] == ["voc", "nonvoc"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("maskx/1a/radn", "did you mean maskx/1a/randn or"),
        ("shapeporp/1", "did you mean shapeprop/1 or"),
        ("xyz", "psis-d2 experiment list names all."),
    ],
)
def test_an_unknown_id_is_one_sentence(name, hint):
    with pytest.raises(UserError, match=f"There is no experiment '{name}'; .*") as error:
        find_experiments(name)
    assert hint in str(error.value)


@pytest.mark.parametrize("paper", papers(), ids=lambda paper: paper.id)
def test_published_values_have_a_source_and_the_others_a_reason(paper):
    for x in (x for table in paper.tables for x in table.experiments):
        assert x.source if x.published else x.unread or x.needs or x.value, x.id
        assert bool(x.steps) != bool(x.needs), x.id
        for task, values in x.published.items():
            assert re.fullmatch(r"(shrunk_)?(segm|segm_overlapped|bbox)_(seen|unseen|all)", task)
            assert values and values.keys() <= METRICS
            assert all(0 < value < 100 for value in values.values()), x.id
            if values.keys() >= {"AP", "AP50", "AP75"}:
                # An average over thresholds from 0.5 on lies below its first one.
                assert values["AP"] < values["AP50"] and values["AP75"] < values["AP50"], x.id


def test_rows_that_papers_repeat_agree_but_for_what_they_say():
    """A number that another table has for the same model is typed twice, which shows slips."""
    of_model = {}
    for x in EXPERIMENTS:
        for task, values in x.published.items():
            of_model.setdefault((x.owner, task), []).append((x, values))
    differing = set()
    for versions in of_model.values():
        first, known = versions[0]
        for x, values in versions[1:]:
            if any(known.get(metric, value) != value for metric, value in values.items()):
                differing.add(f"{first.id} {x.id}")
    assert differing == {
        # Two papers' own runs, or one that copies the other differently; the remarks say which.
        "shapemask/1/shapemask/voc shapeprop/1/shapemask-R101/voc",
        "shapemask/1/our-maskrcnn/voc shapeprop/1/baseline-R101/voc",
        "shapemask/1/our-maskrcnn/nonvoc shapeprop/1/baseline-R101/nonvoc",
        "cpmask/1/bm+am/voc teacher_student/1/cpmask-R50/voc",
        "maskx/2/grabcut-train-R50/voc teacher_student/1/grabcut-R50/voc",
        # One paper, two figures of one model.
        "shapemask/6/128/all shapemask/7/both/all",
    }


def test_readmes_figures_are_those_of_the_registry():
    """Published AP on unseen categories, voc → nonvoc / nonvoc → voc, of every row that has one."""
    found = {}
    for x in EXPERIMENTS:
        last = [s for s in x.steps if s.config]
        opts = [k for s in last for k in s.opts if not k.startswith(("SOLVER.", "TEST."))]
        plain = len(last) == 1 and not opts
        value = x.published.get("segm_unseen", {}).get("AP")
        if plain and value is not None:
            found.setdefault(last[0].config, {}).setdefault(x.split, set()).add(value)
            seen = x.published.get("segm_seen", {}).get("AP")
            if seen is not None:
                found[last[0].config].setdefault("nonvoc", set()).add(seen)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \|[^|]+\| ([^|]*\d[^|]*) \|$", text, re.MULTILINE)
    assert len(rows) > 12
    for names, figures in rows:
        names = re.findall(r"`([\w]+)`", names)
        if figures.startswith("all"):
            continue
        names = [n if not n.startswith("_") else names[0].rpartition("_")[0] + n for n in names]
        for name, pair in zip(names, figures.split(","), strict=True):
            numbers = re.findall(r"\d+\.\d", pair)
            for split, number in zip(("voc", "nonvoc"), numbers, strict=False):
                if name.startswith(OTHER_PAPERS):
                    continue
                assert float(number) in found[name][split], (name, split, number)


def test_figures_have_axes_that_can_be_drawn():
    drawn = {t.id: t.plot["x"] for paper in papers() for t in paper.tables if t.plot}
    assert drawn == {
        "maskx/fig3": MASKS,
        "shapemask/fig8": SHARE,
        "cpmask/fig6": CATEGORIES,
        "shapeprop/fig6": SHARE,
        "teacher_student/fig8": CATEGORIES,
    }


def test_the_page_is_current():
    page = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    assert page == render_page(papers()), "run: psis-d2 experiment page"


def test_what_ran_is_what_the_results_have():
    with open(ROOT / "benchmarks" / "yardsticks" / "partial_shapes.csv") as file:
        ran = {f"{run['config']}_shapes" for run in csv.DictReader(file)} - {"box_fill_shapes"}
    assert {data: set(configs) for data, configs in ran_configs().items()} == {"PartialShapes": ran}


def test_configs_write_where_their_names_say():
    """A step without overrides is found again by its config's name."""
    for name in {s.config for x in EXPERIMENTS for s in x.steps if s.config}:
        assert config_value(name, "OUTPUT_DIR") == f"output/{name}"


def test_every_config_of_the_five_methods_is_a_row():
    used = {s.config for x in EXPERIMENTS for s in x.steps}
    theirs = ("maskx", "shapemask", "shapeprop", "cpmask", "teacher_student", "maskrcnn")
    others = {x for x in config_names() if x.startswith(theirs)} - used
    assert others == NO_ROWS


def test_every_override_changes_the_config():
    checked = set()
    for line, name in trainings().items():
        args, file = parsed(line), of_file(line.words[2])
        for key, value in zip(args.opts[::2], args.opts[1::2], strict=True):
            if key in ("OUTPUT_DIR", "MODEL.WEIGHTS"):
                continue
            if (line.words[2], key, value) in checked:
                continue
            checked.add((line.words[2], key, value))
            single = file.clone()
            merge_options(single, [key, value])
            assert value_of(single, key) != value_of(file, key), f"{name}: {key} {value}"


def test_no_two_trainings_are_the_same():
    """Rows of one model share its folder: the later one names the first by same_as."""
    of_config = {}
    for line, name in trainings().items():
        if line.trains:
            cfg = merged(parsed(line))
            cfg.OUTPUT_DIR = ""
            of_config.setdefault(str(cfg), []).append(name)
    assert {k: v for k, v in of_config.items() if len(v) > 1} == {}


@pytest.mark.parametrize("smoke", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_row_builds_a_model_that_reads_its_keys(smoke, tmp_path, monkeypatch):
    """build_config refuses overrides that a model does not read; each model is built once."""
    monkeypatch.chdir(tmp_path)
    word_vectors(tmp_path)
    built = set()
    for line, name in trainings(smoke).items():
        args = parsed(line)
        cfg = merged(args)
        if model_of(cfg) in built or cfg.DATASETS.TRAIN[0].startswith(ELSEWHERE):
            continue
        built.add(model_of(cfg))
        if cfg.MODEL.RESNETS.DEPTH >= 50:  # no key is about it, and it is slow to build
            args.opts += ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
        try:
            build_config(args)
        except UserError as error:
            raise AssertionError(f"{name}: {line}") from error
    assert len(built) > 10
