"""The registry of methods: what the records say, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bmtpt.errors import SettingsError
from bmtpt.methods import registry
from bmtpt.methods.registry import Method, all_methods, get_method, register
from bmtpt.report.names import _declared

PROMPTS = ("pt", "ptp", "anchored_pt", "spot", "source_mean", "source_ensemble", "attempt", "mpt", "multitask", "bmtpt")

CLASSIFIERS = ("zero_shot", "tfidf_logreg", "encoder_logreg", "sentence_logreg", "setfit")


@pytest.fixture
def restored(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(all_methods()))


def test_the_methods_of_this_package_are_found_in_the_order_of_the_columns():
    assert tuple(all_methods()) == (*PROMPTS, "bmtpt_no_prior", "full", "bitfit", "lora", "adapter", *CLASSIFIERS)


def test_no_two_methods_have_one_name_in_print_or_one_place():
    methods = all_methods().values()
    assert len({method.display_name for method in methods}) == len(methods)
    assert len({method.column for method in methods}) == len(methods)


def test_names_read_from_the_files_without_importing_them_are_those_of_the_records():
    read = [(name, shown) for name, (_, shown) in sorted(_declared().items(), key=lambda item: item[1][0])]
    assert read == [(name, method.display_name) for name, method in all_methods().items()]


def test_only_methods_that_tune_weights_ask_for_a_t5():
    assert {name for name, method in all_methods().items() if method.backbones == "t5"} == {
        name for name, method in all_methods().items() if method.tunes_weights
    }


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(SettingsError, match="there is no method 'bmtp'; did you mean 'bmtpt'"):
        get_method("bmtp")


def test_a_method_of_ones_own_is_found_after_it_is_registered(restored):
    own = register(Method("own", "my method", "unpublished", candidates=lambda setup: []))
    assert get_method("own") is own
    assert list(all_methods())[-1] == "own"


def test_a_name_that_is_taken_is_refused(restored):
    with pytest.raises(SettingsError, match="a method named 'pt' is registered already"):
        register(Method("pt", "my method", "unpublished", candidates=lambda setup: []))


def test_a_record_that_does_not_say_what_is_trained_is_refused(restored):
    with pytest.raises(SettingsError, match="method 'own' must give one of 'candidates', 'stage' and 'classifier'"):
        register(Method("own", "my method", "unpublished"))


def test_reading_the_registry_does_not_import_transformers():
    code = (
        "import sys; from bmtpt.methods import registry as r; r.all_methods(); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
