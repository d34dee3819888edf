"""Recipes: both forms are exact inverses, errors say where, parameters are checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokpipe import recipe
from tokpipe.budget import Budget
from tokpipe.encode.mel import Mel
from tokpipe.errors import BudgetError, RecipeError, TokpipeError, UnknownOperator
from tokpipe.recipe import Recipe, from_line, from_toml, load_recipe
from tokpipe.spec import StepSpec

LINE = "video: fps:fps=2.0 | pixels | tome; audio: mel:bins=128 | silence-gate; budget=2048"
TOML = """\
format = 1
summary = "a test"
budget = "10%"

[[video.step]]
use = "pixels"

[[video.step]]
use = "tome"
ratio = 0.5
"""

texts = st.text(st.characters(codec="utf-8"), max_size=12)
scalars = st.one_of(
    st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False, allow_infinity=False), texts,
    st.sampled_from(["true", "nan", "inf", "a|b", "a;b", 'a"b', "a\\", "[", "1e5", "", "\x7f"]),
)  # fmt: skip
values = st.one_of(scalars, st.lists(st.one_of(scalars, st.tuples(scalars)), max_size=3).map(tuple))
params = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True), values, max_size=3)
params = params.map(lambda given_: {k: v for k, v in sorted(given_.items()) if k != "use"})


def steps(*names: str) -> st.SearchStrategy[StepSpec]:
    return st.builds(StepSpec, use=st.sampled_from(names), params=params)


def chains(encoder: str, *samplers: str) -> st.SearchStrategy[tuple[StepSpec, ...]]:
    before = st.lists(steps(*samplers), max_size=2) if samplers else st.just([])
    after = st.lists(steps("tome", "top-k", "adjacent-merge"), max_size=3)
    return st.tuples(before, steps(encoder), after).map(lambda p: (*p[0], p[1], *p[2]))


amounts = st.one_of(
    st.integers(1, 10**9).map(str), st.integers(1, 999).map(lambda n: f"{n}/frame"),
    st.integers(1, 10**6).map(lambda n: f"{n / 1000:.3f}/s"),
    st.integers(1, 100).map(lambda n: f"{n}%"),
    st.tuples(st.integers(0, 999), st.integers(1, 999)).map(lambda p: f"video={p[0]},audio={p[1]}"),
)  # fmt: skip
recipes = st.builds(
    Recipe, video=chains("pixels", "fps"), audio=st.one_of(st.just(()), chains("mel")),
    budget=st.one_of(st.none(), amounts.map(Budget.parse)), seed=st.integers(0, 1 << 40),
)  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal, and of equal types all the way down: 1, 1.0 and True differ in a digest."""
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def check_equal(made: Recipe, given_: Recipe) -> None:
    assert made == given_
    assert made.digest == given_.digest
    for chain, other in zip((made.video, made.audio), (given_.video, given_.audio), strict=True):
        for step, twin in zip(chain, other, strict=True):
            assert same(tuple(step.params.items()), tuple(twin.params.items()))


@settings(max_examples=80, deadline=None)
@given(given_=recipes)
def test_line_is_an_exact_inverse(given_: Recipe) -> None:
    check_equal(from_line(given_.to_line()), given_)


@settings(max_examples=80, deadline=None)
@given(given_=recipes, summary=texts)
def test_toml_is_an_exact_inverse(given_: Recipe, summary: str) -> None:
    told = Recipe(
        video=given_.video, audio=given_.audio, budget=given_.budget, seed=given_.seed,
        summary=summary,
    )  # fmt: skip
    made = from_toml(told.to_toml())
    check_equal(made, given_)
    assert made.summary == summary


@settings(max_examples=120, deadline=None)
@given(
    text=st.one_of(st.text(max_size=60), st.text('videoaudiofpsmel:|;,=[]"\\ 0.1\n', max_size=60))
)
def test_any_text_gives_a_recipe_or_a_tokpipe_error(text: str) -> None:
    for read in (from_line, from_toml, load_recipe):
        try:
            made = read(text)
        except TokpipeError:
            continue
        check_equal(from_line(made.to_line()), made)


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0, len(LINE)), text=st.text(max_size=3), drop=st.integers(0, 4))
def test_mutated_line_gives_a_recipe_or_a_tokpipe_error(place: int, text: str, drop: int) -> None:
    try:
        made = from_line(LINE[:place] + text + LINE[place + drop :])
    except TokpipeError:
        return
    check_equal(from_line(made.to_line()), made)


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, "0x" + "f" * 20, "nan", "{a=1}"])
def test_hostile_values_are_recipe_errors(value: str) -> None:
    with pytest.raises(RecipeError):
        from_toml(f'[[video.step]]\nuse = "pixels"\nx = {value}\n')
    with pytest.raises(RecipeError):
        from_line(f"pixels:x={value}")


def test_line_value_must_be_one_value() -> None:
    with pytest.raises(RecipeError, match="more than one value"):
        from_line("pixels:x=1\ny = 2")


def test_line_is_read_into_steps() -> None:
    made = from_line(LINE)
    assert [step.use for step in made.video] == ["fps", "pixels", "tome"]
    assert made.video[0].params == {"fps": 2.0}
    assert made.audio[0].params == {"bins": 128}
    assert str(made.budget) == "2048"


def test_line_without_label_is_video() -> None:
    assert [s.use for s in from_line("fps | pixels").video] == ["fps", "pixels"]


def test_toml_is_read_into_steps() -> None:
    made = from_toml(TOML)
    assert [(s.use, s.params) for s in made.video] == [("pixels", {}), ("tome", {"ratio": 0.5})]
    assert (made.summary, str(made.budget)) == ("a test", "10%")


def test_digest_ignores_the_order_of_parameters_and_the_summary() -> None:
    a, b = from_line("pixels | tome:a=1,b=2"), from_line("pixels|tome:b=2, a=1")
    assert a.digest == b.digest
    assert a.digest != from_line("pixels | tome:a=1,b=3").digest


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("fps | pixle", "column 7"),
        ("  fps | pixels | tme; budget=1", "column 18"),
        ("video: fps | pixels; audio: mle", "column 29"),
        ("fps | | pixels", "column 7"),
        ("fps | Pixels", "column 7"),
        ("fps:fps | pixels", "column 1"),
        ("fps:fps= | pixels", "column 1"),
        ("fps:fps=1,fps=2 | pixels", "column 1"),
        ("pixels; mel", "column 8"),
        ("pixels; budget=1; budget=2", "column 19"),
    ],
)
def test_line_errors_say_the_column(line: str, where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_line(line)
    assert caught.value.where == where


def test_toml_errors_say_the_line() -> None:
    with pytest.raises(UnknownOperator) as caught:
        from_toml(TOML.replace('"tome"', '"tomme"'), "my.toml")
    assert caught.value.where == "my.toml, line 8"
    assert caught.value.hint is not None
    assert "`tome`" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "format = 2", "nope = 1", "[video]\nsteps = []", "video = 1", "seed = -1", "seed = true",
        "[[video.step]]\nname = 'x'", "[[video.step]]\nuse = 'pixels'\n'a b' = 1", "= 1",
        "[[video.step]]\nuse = 'pixels'\nx = 1979-05-27", "",
    ],
)  # fmt: skip
def test_toml_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_toml(text, "x.toml")
    assert str(caught.value.where).startswith("x.toml")


@pytest.mark.parametrize("name", ["tomme", "pixel", "mell"])
def test_unknown_operator_suggests_the_nearest(name: str) -> None:
    with pytest.raises(UnknownOperator) as caught:
        load_recipe(name)
    assert caught.value.hint is not None
    assert "did you mean" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tome | pixels", "`pixels` (encoder) cannot follow `tome` (reducer) in the video chain"),
        ("pixels | fps", "`fps` (sampler) cannot follow `pixels` (encoder) in the video chain"),
        ("pixels | pixels", "`pixels` (encoder) cannot follow `pixels` (encoder)"),
        ("budget=5", "the recipe has no steps"),
    ],
)
def test_order_of_steps_is_checked(line: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        from_line(line)
    assert message in caught.value.message
    assert caught.value.hint


def test_budget_errors_say_where() -> None:
    with pytest.raises(BudgetError) as caught:
        from_toml(TOML.replace("10%", "ten"), "my.toml")
    assert caught.value.where == "my.toml"


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TOML, encoding="utf-8")
    assert load_recipe(str(path)) == from_toml(TOML)


@pytest.mark.parametrize("name", ["absent.toml", "a\0.toml"])
def test_load_of_a_missing_file_is_a_recipe_error(name: str) -> None:
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(name)


def test_load_of_a_file_that_is_no_text_is_a_recipe_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot read recipe"):
        load_recipe(str(path))


def test_with_budget_replaces_only_the_budget() -> None:
    made = from_line(LINE).with_budget(Budget.parse("7"))
    assert made.to_line() == LINE.replace("2048", "7")


def build(use: str, **params: Any) -> Any:
    return recipe.build(StepSpec(use=use, params=params))


def test_build_makes_the_operator() -> None:
    assert build("mel", bins=128) == Mel(bins=128)
    assert build("adjacent-merge", threshold=1).threshold == 1.0


@pytest.mark.parametrize(
    ("use", "params", "words"),
    [
        ("mel", {"bin": 80}, ["no parameter `bin`"]),
        ("mel", {"source": "x"}, ["no parameter `source`"]),
        ("mel", {"bins": 81}, ["bins", "80 or 128", "81"]),
        ("mel", {"bins": "80"}, ["bins"]),
        ("adjacent-merge", {"threshold": -0.5}, ["threshold", "greater than or equal to 0"]),
        ("adjacent-merge", {"max_run": 0}, ["max_run"]),
        ("adjacent-merge", {"max_run": 2.5}, ["max_run", "integer"]),
        ("adjacent-merge", {"max_run": True}, ["max_run"]),
        ("silence-gate", {"drop": 1}, ["drop", "boolean"]),
        ("silence-gate", {"threshold_db": math.nan}, ["threshold_db"]),
    ],
)
def test_build_names_step_and_parameter(use: str, params: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        build(use, **params)
    assert f"`{use}`" in caught.value.message
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.code == "recipe.parameter"
    assert caught.value.hint


def test_a_chain_without_an_encoder_gets_the_default_one() -> None:
    assert load_recipe("video: tome").to_line() == "video: fps:fps=2.0 | pixels:cells=16 | tome"
    assert load_recipe("fps:fps=1.0 | tome").video[0].params == {"fps": 1.0}
    assert [s.use for s in load_recipe("audio: silence-gate").audio] == ["mel", "silence-gate"]


def test_an_operator_is_a_recipe_beside_the_default_of_the_other_stream() -> None:
    made, auto = load_recipe("tome"), load_recipe("auto")
    assert [s.use for s in made.video] == ["fps", "pixels", "tome"]
    assert made.audio == auto.audio
    assert load_recipe("silence-gate").video == auto.video


def test_a_recipe_takes_the_streams_it_does_not_name_from_its_base() -> None:
    text = 'format = 1\nbase = "auto"\n[[audio.step]]\nuse = "mel"\n'
    made = from_toml(text)
    assert made.video == load_recipe("auto").video
    assert [s.use for s in made.audio] == ["mel"]
    with pytest.raises(RecipeError, match="no-such"):
        from_toml(text.replace('"auto"', '"no-such"'))
