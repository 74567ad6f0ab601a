"""Grids of settings, and what a study makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmtpt.errors import SettingsError
from bmtpt.report.names import options_of
from bmtpt.studies.load import checked
from bmtpt.studies.spec import StudySpec
from bmtpt.studies.variants import SOURCE_STAGE, Variant, expand, merged


def spec(**changes) -> StudySpec:
    values = {"name": "s", "sources": ["sst2"], "targets": ["cb"], "methods": ["pt", "bmtpt"]}
    return StudySpec.model_validate(values | changes)


def test_a_grid_is_every_combination_in_order():
    points = expand([{"learn.particles": [1, 3], "adapt.prior": ["mean", "mixture"]}])
    assert [point.name for point in points] == [
        "particles=1,prior=mean",
        "particles=1,prior=mixture",
        "particles=3,prior=mean",
        "particles=3,prior=mixture",
    ]
    assert points[1].overrides == (("learn.particles", 1), ("adapt.prior", "mixture"))


def test_the_empty_grid_is_the_study_as_it_is():
    assert expand([{}]) == [Variant()]
    assert expand([{}])[0].applied({"a": {"b": 1}}) == {"a": {"b": 1}}


def test_the_part_of_a_name_that_concerns_the_source_stage_is_known():
    (point,) = expand([{"learn.scope": "row", "adapt.prior_std": 3.0, "backbone": "x"}])
    assert point.name == "scope=row,prior_std=3,backbone=x"
    assert point.name_of(SOURCE_STAGE) == "scope=row,backbone=x"


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.booleans() | st.floats(0.1, 9), min_size=1))
def test_the_name_of_a_variant_says_every_setting(options):
    (point,) = expand([{f"learn.{name}": value for name, value in options.items()}])
    assert set(options_of(point.name)) == set(options)
    assert point.applied({}) == {"learn": options}


def test_merging_replaces_leaves_and_leaves_the_rest_and_its_arguments_alone():
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 2}
    assert merged(base, {"a": {"y": [3]}, "c": None}) == {"a": {"x": 1, "y": [3]}, "b": 2, "c": None}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 2}


def test_contenders_are_methods_with_their_variants_and_carry_the_settings():
    study = spec(variants={"bmtpt": [{}, {"learn.particles": [1, 7]}]})
    found = {contender.key: contender.study for contender in study.contenders()}
    assert list(found) == [("pt", ""), ("bmtpt", ""), ("bmtpt", "particles=1"), ("bmtpt", "particles=7")]
    assert [each.learn.particles for each in found.values()] == [5, 5, 1, 7]
    assert all(not each.variants for each in found.values())


def test_grids_of_all_methods_are_combined_with_a_methods_own():
    study = spec(variants={"all": [{"backbone": ["a", "b"]}], "bmtpt": [{"adapt.prior": "none"}]})
    assert [contender.key for contender in study.contenders()] == [
        ("pt", "backbone=a"),
        ("pt", "backbone=b"),
        ("bmtpt", "backbone=a,prior=none"),
        ("bmtpt", "backbone=b,prior=none"),
    ]


@pytest.mark.parametrize(
    ("variants", "parts"),
    [
        ({"bmtpt": [{"learn.particels": 3}]}, ["file.yaml: variants: unknown option 'learn.particels'", "'particles'"]),
        ({"bmtpt": [{"learn.kernel": ["rbf", "rbg"]}]}, ["'learn.kernel' cannot be 'rbg'", "did you mean 'rbf'"]),
        ({"bmtpt": [{"learnt.kernel": "rbf"}]}, ["unknown option 'learnt'", "'learn'"]),
        ({"all": [{"limits.train": [10, 20]}]}, ["option 'limits.train' cannot be varied; make a second study"]),
        ({"bmtpt": [{"data": ["hub", "offline"]}]}, ["option 'data' cannot be varied"]),
        ({"bmtpt": [{"adapt.shots": [4, 8]}]}, ["option 'adapt.shots' cannot be varied"]),
        (
            {"all": [{}, {"learn.steps": 100}], "bmtpt": [{}, {"adapt.steps": 100}]},
            ["variants: bmtpt has two variants named 'steps=100'"],
        ),
    ],
)
def test_a_variant_that_cannot_be_is_refused_in_one_sentence(variants, parts):
    with pytest.raises(SettingsError) as error:
        checked(spec(variants=variants), "file.yaml")
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("variants", "reason"),
    [
        ({"spot": [{}]}, "variants are given for 'spot', which is not compared"),
        ({"bmtpt": [{"learn.particles": [3, 3]}]}, "variant 'particles=3' of bmtpt is given twice"),
    ],
)
def test_variants_of_a_method_that_is_not_compared_and_equal_ones_are_refused(variants, reason):
    with pytest.raises(ValueError, match=reason):
        spec(variants=variants)
