"""What configs resolve to, against the figures of papers and released codes in the registry."""

import psis_d2  # noqa: F401
from psis_d2.experiments.recipes import Recipe, _recipe, recipes
from psis_d2.model_zoo import config_names

import pytest
from recipe_figures import READERS, SAMPLED, figures_of


def expected(value, what: str):
    """Numbers as they are compared; weights are random, and a layer has some thousands of them."""
    if isinstance(value, float):
        return pytest.approx(value, rel=0.12 if SAMPLED.match(what) else 1e-5)
    if isinstance(value, list):
        return [expected(x, what) for x in value]
    return value


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.id)
def test_configs_resolve_to_their_recipe(recipe: Recipe):
    wrong = []
    for name in recipe.configs:
        figures = figures_of(name)
        for choice in recipe.choices:
            found = READERS[choice.what](figures)
            if found != expected(choice.here, choice.what):
                wrong.append(f"{name}: {choice.what} is {found}, not {choice.here}")
    assert wrong == []


def test_every_reader_is_asked_for():
    assert {choice.what for recipe in recipes() for choice in recipe.choices} == set(READERS)


def test_recipes_are_of_configs_that_there_are():
    listed = [name for recipe in recipes() for name in recipe.configs]
    assert set(listed) <= set(config_names())
    assert len({recipe.id for recipe in recipes()}) == len(recipes())


def test_a_config_has_a_choice_from_one_recipe():
    seen = set()
    for recipe in recipes():
        for pair in ((name, c.what) for name in recipe.configs for c in recipe.choices):
            assert pair not in seen
            seen.add(pair)


def choices(batch, **others) -> Recipe:
    content = {"id": "r", "about": "", "sources": {"paper": "P", "released": "C"}, "configs": []}
    return _recipe({**content, "choices": {"images a batch": batch, **others}})


def test_rate_and_iterations_go_with_the_batch():
    recipe = choices(
        {"here": 16, "released": 64, "paper": 16},
        rate={"here": 0.02, "released": 0.08, "paper": 0.08, "why": ""},
        iterations={"here": 180, "released": 45, "paper": 180},
        **{"rate drops at": {"here": [120, 160], "released": [30, 40], "paper": [30, 40]}},
        **{"least score": {"here": 0.05, "released": 0.2, "why": "ours"}},
    )
    assert [choice.follows for choice in recipe.choices] == [
        ("paper",),
        ("released",),
        ("paper", "released"),
        ("released",),
        (),
    ]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"here": 1, "paper": 2}, "nobody's"),
        ({"paper": 2}, "lacks"),
        ({"here": 1, "because": "x"}, "lacks"),
    ],
)
def test_a_choice_that_is_not_explained_is_refused(choice, words):
    with pytest.raises(ValueError, match=words):
        choices({"here": 1, "paper": 1}, rate=choice)
