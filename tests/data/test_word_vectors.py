"""Class embeddings from a file of word vectors."""

import psis_d2  # noqa: F401
from psis_d2.data.word_vectors import read_class_vectors
from psis_d2.errors import UserError

import pytest


def write(tmp_path, text: str) -> str:
    (tmp_path / "vectors.txt").write_text(text, encoding="utf-8")
    return str(tmp_path / "vectors.txt")


def test_names_of_one_and_of_several_words(tmp_path):
    lines = ["the 9 9", "cup 1 2", "dining 0 4", "table 2 0", "potted_plant 5 6", "plant 7 7"]
    path = write(tmp_path, "\n".join(lines) + "\n")
    names = ["potted plant", "Cup", "dining table"]
    # a row of its own, the lower case, the mean of (0, 4) and (2, 0)
    assert read_class_vectors(path, names).tolist() == [[5, 6], [1, 2], [1, 2]]


def test_the_first_of_two_rows_counts_and_other_rows_are_not_parsed(tmp_path):
    path = write(tmp_path, "400000 300\nodd row without numbers\ncup 1 2\ncup 3 4\n")
    assert read_class_vectors(path, ["cup"]).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cup 1 2\n", "no vector for hat, red car; add a line"),
        ("cup 1 x\n", "Line 1 of the embedding file .* is not a word and numbers"),
        ("\ncup\n", "Line 2 .* is not a word and finite numbers"),
        ("cup 1 nan\n", "is not a word and finite numbers"),
        ("cup 1 2\nhat 1 2 3\n", "vectors of 2 and of 3 numbers; make all lines equally long"),
    ],
)
def test_bad_files(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read_class_vectors(write(tmp_path, text), ["cup", "hat", "red car"])


def test_many_missing_names_are_counted(tmp_path):
    with pytest.raises(UserError, match="no vector for a0, .* a7 and 12 more"):
        read_class_vectors(write(tmp_path, "x 1\n"), [f"a{k}" for k in range(20)])


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "vectors.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="as UTF-8 text"):
        read_class_vectors(str(path), ["cup"])
