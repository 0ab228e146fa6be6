"""Config files and KEY VALUE words: merged, or refused with one sentence that names the file."""

from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.config import RENAMED_KEYS, add_psis_config
from psis_d2.config_files import check_part_options, merge_file, merge_options
from psis_d2.errors import UserError

import pytest
from detectron2.config import CfgNode, get_cfg
from one_sentence import refusal

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


def config() -> CfgNode:
    cfg = get_cfg()
    add_psis_config(cfg)
    return cfg


def test_files_are_merged_as_detectron2_merges_them():
    for path in CONFIGS:
        own, theirs = config(), config()
        merge_file(own, str(path))
        theirs.merge_from_file(str(path))
        assert own == theirs, path.name


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"TEST:\n\tBOXES: gt\n", "is no YAML (line 2: .*indent with spaces, not with tabs)"),
        (b"- a\n- b\n", "is a list and not keys with values"),
        (b"words\n", "is a str and not keys with values"),
        (b"", "is empty"),
        (b"# nothing but this\n", "is empty"),
        (bytes(range(128, 256)), "is not text; name a YAML file"),
        (b"a\0b: 1\n", "is no YAML (unacceptable character"),
        (b"a: [\n", "is no YAML (line 2: "),
        (b"{" * 5000, "is no YAML"),
        (b"3: 1\n", "has a key 3, which is no name"),
        (b"_BASE_: gone.yaml\n", "gone.yaml, which .*bad.yaml is based on, does not exist"),
        (b"_BASE_: bad.yaml\n", "bad.yaml is based on itself"),
        (b"_BASE_: .\n", "is based on, is a folder"),
        (b"_BASE_: 3\n", "_BASE_ in .*bad.yaml is 3; it must be the path"),
        (b"TEST:\n", "TEST in .*bad.yaml is None, but it is a group of keys"),
        (b"TEST:\n  BOXES:\n    X: 1\n", "TEST.BOXES in .*bad.yaml is one value"),
        (b"TEST:\n  BOXES: gtt\n", "choose one of detected, gt, both (did you mean gt?)"),
        (b"TEST:\n  OVERLAP: .nan\n", "TEST.OVERLAP in .*bad.yaml is nan"),
        (b"INPUT:\n  FORMAT: 3\n", "A value in .*bad.yaml cannot be used (Type mismatch .*FORMAT"),
        (b"PSIS:\n  SEEN_CLASES: voc\n", "PSIS.SEEN_CLASES in .*mean PSIS.SEEN_CLASSES?"),
        (b"A: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
    ids=lambda x: x[:24].decode(errors="replace") if isinstance(x, bytes) else "",
)
def test_bad_files(content, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    sentence = refusal(merge_file, config(), str(path))
    assert "bad.yaml" in sentence
    for part in words.split(".*"):
        assert part in sentence
        sentence = sentence.split(part, 1)[1]


def test_no_file(tmp_path):
    assert "nowhere.yaml does not exist" in refusal(
        merge_file, config(), str(tmp_path / "nowhere.yaml")
    )
    assert "is a folder; name a file in it" in refusal(merge_file, config(), str(tmp_path))


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    from detectron2.utils.file_io import PathManager

    path = tmp_path / "locked.yaml"
    path.write_text("TEST: {BOXES: gt}\n")

    def locked(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(PathManager, "open", locked)  # the tests may run as root
    assert "locked.yaml cannot be read (Permission denied)" in refusal(
        merge_file, config(), str(path)
    )


def test_bases_are_merged_in_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("TEST: {BOXES: gt, OVERLAP: 0.5}\nSEED: 1\n")
    (tmp_path / "b.yaml").write_text("TEST: {OVERLAP: 0.25}\n")
    (tmp_path / "sub" / "c.yaml").write_text("_BASE_: [../a.yaml, ../b.yaml]\nSEED: 3\n")
    cfg = config()
    merge_file(cfg, str(tmp_path / "sub" / "c.yaml"))
    assert (cfg.TEST.BOXES, cfg.TEST.OVERLAP, cfg.SEED) == ("gt", 0.25, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["TEST.BOXES"], "The KEY VALUE pairs have TEST.BOXES without a partner"),
        (["PSIS.NO_SUCH_KEY", "1"], "PSIS.NO_SUCH_KEY is no config key; correct the name"),
        (["PSIS.TEACHER_STUDNET.THRESHOLD", "1"], "(did you mean PSIS.TEACHER_STUDENT?)"),
        (["PSIS.CPMASK", "1"], "PSIS.CPMASK is '1', but it is a group of keys (BOUNDARY, FUSION"),
        (["TEST.OVERLAP", "nan"], "TEST.OVERLAP is nan"),
        (["TEST.BOX_SHRINK", "-1"], "TEST.BOX_SHRINK is -1.0; it must be"),
        (["TEST.DETECTIONS_PER_IMAGE", "many"], "is 'many'; it must be a whole number, at least 1"),
        (["SOLVER.STEPS", "[1,x]"], "SOLVER.STEPS is '[1,x]'; it must be a list"),
    ],
)
def test_bad_options(options, words):
    assert words in refusal(merge_options, config(), options)


def test_options_are_decoded():
    cfg = config()
    words = "TEST.OVERLAP 1 SOLVER.STEPS (3,4) TEST.BOXES gt PSIS.ORACLE True SOLVER.BASE_LR 1e-3"
    merge_options(cfg, [*words.split(), "DATASETS.TEST", "[]"])
    assert (cfg.TEST.OVERLAP, type(cfg.TEST.OVERLAP)) == (1.0, float)
    assert (cfg.SOLVER.STEPS, cfg.TEST.BOXES, cfg.PSIS.ORACLE) == ((3, 4), "gt", True)
    assert (cfg.SOLVER.BASE_LR, cfg.DATASETS.TEST) == (0.001, ())


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_renamed_keys(old, new, tmp_path):
    assert (
        refusal(merge_options, config(), [old, "1"]) == f"{old} is called {new} now; use that name."
    )
    *path, name = old.split(".")
    tree = f"{name}: 1"
    for node in reversed(path):
        tree = f"{node}: {{{tree}}}"
    (tmp_path / "old.yaml").write_text(tree)
    assert f"is called {new} now" in refusal(merge_file, config(), str(tmp_path / "old.yaml"))
    with pytest.raises(KeyError, match=f"{old} was renamed to {new}"):  # Detectron2's own way
        config().merge_from_list([old, True])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["PSIS.NO_SUCH", 1], "PSIS.NO_SUCH in PSIS.TEACHER_STUDENT.TEACHER_OPTS is no config key"),
        (
            ["PSIS.FCN_UPSAMPLINGS", 0],
            "PSIS.FCN_UPSAMPLINGS in PSIS.TEACHER_STUDENT.TEACHER_OPTS is 0; it must",
        ),
        (["PSIS.MLP_BRANCH_DIM", 8], "has an effect only with PSIS.MLP_BRANCH True"),
    ],
)
def test_options_of_a_part_are_looked_at(options, words):
    cfg = config()
    cfg.PSIS.TEACHER_STUDENT.TEACHER_OPTS = options
    with pytest.raises(UserError) as caught:
        check_part_options(cfg)
    assert words in str(caught.value)
    cfg.PSIS.TEACHER_STUDENT.TEACHER_OPTS = ["PSIS.FCN_UPSAMPLINGS", 2]
    check_part_options(cfg)
    assert cfg.PSIS.FCN_UPSAMPLINGS == 1
