from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmtpt.errors import DataError
from bmtpt.tasks import TaskSpec, load_task
from bmtpt.tasks.text import merge, own_text, render, rounded, to_examples
from bmtpt.types import Example

MULTIRC = {
    "paragraph": "<b>Sent 1: </b>It rained.<br>He left.",
    "question": "Why?",
    "answer": "rain",
    "idx": {"paragraph": 3, "question": 7, "answer": 1},
    "label": 1,
}
RECORD = {
    "passage": 'He said "no."\n@highlight\nSmith won\n@highlight\nJones lost',
    "query": "@placeholder won",
    "entities": ["Smith", "Jones", "Smith"],
    "answers": ["Smith", "John Smith", "Smith"],
}
COPA = {
    "premise": "My body cast a shadow.",
    "choice1": "The sun was rising.",
    "choice2": "The grass was cut.",
    "question": "cause",
    "label": 0,
}


def one(task, row, training=True):
    (example,) = to_examples(load_task(task), row, training=training)
    return example


def test_texts_and_labels_look_as_t5_saw_them():
    row = {"sentence1": "A man sat.", "sentence2": "He stood.", "label": 1}
    example = one("rte", row)
    assert example.text == "rte sentence1: A man sat. sentence2: He stood."
    assert (example.before, example.context) == ("rte sentence1: ", "A man sat.")
    assert (example.target, example.label, example.references) == ("not_entailment", 1, ("not_entailment",))


def test_braces_and_blanks_in_a_row_are_only_text():
    example = one("sst2", {"sentence": "  a {label} film \n", "label": 0})
    assert example.text == "sst2 sentence: a {label} film"


def test_winogrande_shows_both_options():
    row = {"sentence": "Ann beat Bea so _ won.", "option1": "Ann", "option2": "Bea", "answer": "1"}
    example = one("winogrande", row)
    assert example.text == "winogrande sentence: Ann beat Bea so _ won. option1: Ann option2: Bea"
    assert example.target == "option1"


def test_copa_keeps_its_question():
    assert "question: cause" in one("copa", COPA).text
    assert one("copa", COPA).text != one("copa", {**COPA, "question": "effect"}).text


def test_copa_answers_with_the_words_of_the_choice():
    assert one("copa", COPA).target == "The sun was rising."
    assert one("copa", {**COPA, "label": 1}).target == "The grass was cut."


@pytest.mark.parametrize(
    ("raw", "written"), [(0, "0.0"), (2.57, "2.6"), (3.2, "3.2"), (3.3, "3.2"), (4.91, "5.0"), ("1.09", "1.0")]
)
def test_similarity_is_rounded_to_fifths(raw, written):
    # 3.3 lies between two fifths; round() takes the even one (16/5), as NumPy and TensorFlow do.
    example = one("stsb", {"sentence1": "a", "sentence2": "b", "label": raw})
    assert (example.target, example.label) == (written, None)


@given(st.floats(0, 5))
def test_rounding_to_fifths_moves_a_score_by_a_tenth_at_most(score):
    written = rounded(score, 5)
    assert round(float(written) * 10) % 2 == 0  # 0.0, 0.2, 0.4, …
    assert abs(float(written) - score) <= 0.1 + 1e-9


@pytest.mark.parametrize("raw", ["high", float("nan"), None])
def test_a_similarity_that_is_no_number_is_refused(raw):
    with pytest.raises(DataError, match=r"number|empty"):
        one("stsb", {"sentence1": "a", "sentence2": "b", "label": raw})


def test_multirc_groups_answers_by_question():
    example = one("multirc", MULTIRC)
    same = one("multirc", {**MULTIRC, "answer": "snow", "idx": {**MULTIRC["idx"], "answer": 2}})
    other = one("multirc", {**MULTIRC, "idx": {"paragraph": 3, "question": 8, "answer": 1}})
    elsewhere = one("multirc", {**MULTIRC, "idx": {"paragraph": 37, "question": 7, "answer": 1}})
    assert example.group == same.group
    assert len({example.group, other.group, elsewhere.group}) == 3
    assert example.target == "true"


def test_multirc_without_numbers_groups_by_its_texts():
    bare = {key: value for key, value in MULTIRC.items() if key != "idx"}
    assert one("multirc", bare).group == one("multirc", {**bare, "answer": "snow"}).group
    assert one("multirc", bare).group != one("multirc", {**bare, "question": "Who?"}).group


def test_multirc_markup_is_removed():
    assert one("multirc", MULTIRC).context == "Sent 1: It rained. He left."


def test_blank_multirc_answers_are_evaluated_but_not_trained_on():
    blank = {**MULTIRC, "answer": " "}
    assert to_examples(load_task("multirc"), blank, training=True) == []
    assert len(to_examples(load_task("multirc"), blank, training=False)) == 1


def test_record_trains_on_each_answer_once():
    spec = load_task("record")
    examples = to_examples(spec, RECORD, training=True)
    assert [example.target for example in examples] == ["Smith", "John Smith"]
    assert len({example.text for example in examples}) == 1


def test_record_evaluates_each_query_once_with_all_answers():
    spec = load_task("record")
    copies = [{**RECORD, "answers": ["Smith"]}, {**RECORD, "answers": ["John Smith"]}]
    other = {**RECORD, "query": "@placeholder lost", "answers": ["Jones"]}
    examples = [example for row in (*copies, other) for example in to_examples(spec, row, training=False)]
    merged = merge(spec, examples)
    assert [example.references for example in merged] == [("Smith", "John Smith"), ("Jones",)]


def test_other_tasks_keep_rows_that_look_alike():
    spec = load_task("sst2")
    twice = to_examples(spec, {"sentence": "good", "label": 1}, training=False) * 2
    assert merge(spec, twice) == twice


def test_record_highlights_become_sentences():
    example = to_examples(load_task("record"), RECORD, training=False)[0]
    assert example.context == 'He said "no." Smith won. Jones lost'
    assert example.before == "record query: @placeholder won entities: Smith, Jones passage: "


@pytest.mark.parametrize(
    ("task", "row", "part"),
    [
        ("wsc", {"text": "He left.", "span1_index": "x"}, "the row does not look like a row of wsc"),
        (
            "wsc",
            {"text": "He left.", "span1_index": 99, "span1_text": "He", "span2_index": 0, "span2_text": "He"},
            "'He' should be word 99 of a text of 2 words",
        ),
        (
            "multirc",
            {"paragraph": "a", "question": "b", "answer": "c", "idx": {}},
            "the row does not look like a row of multirc",
        ),
        ("record", {"passage": "a", "query": "b", "entities": 5}, "the row does not look like a row of record"),
    ],
)
def test_a_row_that_is_not_as_its_data_sets_are_is_refused_in_one_sentence(task, row, part):
    with pytest.raises(DataError, match=part):
        one(task, {**row, "label": 0})


@pytest.mark.parametrize(
    ("row", "marked"),
    [
        (
            {"text": "Mark told Pete that he left.", "span1_index": 0, "span1_text": "Mark", "span2_index": 4},
            "* Mark * told Pete that # he # left.",
        ),
        (
            {"text": "When he left, The man sang.", "span1_index": 3, "span1_text": "the man", "span2_index": 1},
            "When # he # left, * The man * sang.",
        ),
        (
            {"text": "Give Pete the dog, it is his", "span1_index": 2, "span1_text": "the dog", "span2_index": 5},
            "Give Pete * the dog *, it # is # his",
        ),
    ],
)
def test_wsc_marks_noun_and_pronoun(row, marked):
    pronoun = row["text"].split(" ")[row["span2_index"]]
    assert one("wsc", {**row, "span2_text": pronoun, "label": 0}).text == f"wsc text: {marked}"


@pytest.mark.parametrize(
    ("task", "answers"),
    [
        ("squad", {"text": ["gold", "gold", "the gold"], "answer_start": [1, 1, 0]}),
        ("hotpotqa", ["gold", "the gold"]),
    ],
)
def test_every_accepted_answer_is_a_reference(task, answers):
    example = one(task, {"id": "x", "question": "Theme?", "context": "It was the gold.", "answers": answers})
    assert (example.target, example.references) == ("gold", ("gold", "the gold"))
    assert example.context == "It was the gold."


def test_mrqa_rows_of_the_hub_read_like_those_of_a_folder():
    hub = {"context": "c", "question": "q", "answers": ["a"], "key": "k", "labels": [{"start": [1], "end": [2]}]}
    assert one("nq", hub) == one("nq", {"id": "nq0", "question": "q", "context": "c", "answers": ["a"]})


def test_a_question_without_answer_is_refused():
    with pytest.raises(DataError, match="no answer"):
        one("nq", {"question": "q", "context": "c", "answers": []})


@pytest.mark.parametrize("raw", [True, "true", 1, 1.0, "1"])
def test_boolq_reads_both_copies_of_its_labels(raw):
    assert one("boolq", {"question": "q", "passage": "p", "label": raw}).label == 1


def test_scitail_reads_numbers_and_names():
    rows = [{"premise": "p", "hypothesis": "h", "label": raw} for raw in (0, "entails")]
    assert {one("scitail", row).target for row in rows} == {"entailment"}


@pytest.mark.parametrize("raw", [2, "oops", -1, 0.5])
def test_an_unlisted_label_is_refused_with_the_known_ones(raw):
    with pytest.raises(DataError, match=f"label '{raw}'.*0, 1"):
        one("sst2", {"sentence": "x", "label": raw})


def test_a_missing_column_is_named_with_those_there():
    with pytest.raises(DataError, match="no column 'sentence'; the columns are text, label"):
        one("sst2", {"text": "x", "label": 1})


@pytest.mark.parametrize("index", [float("inf"), float("nan"), 1e300, "x", -1, 99])
def test_a_span_that_is_at_no_word_is_refused(index):
    row = {"text": "Ann beat him", "span1_text": "Ann", "span2_text": "him", "span1_index": 0, "label": 1}
    with pytest.raises(DataError):
        one("wsc", {**row, "span2_index": index})


@pytest.mark.parametrize("number", [float("inf"), 1e308, "1e999", 10**400, "much", [1]])
def test_what_is_no_finite_number_is_refused(number):
    with pytest.raises(DataError, match="is not a number"):
        rounded(number, 5)


TEMPLATES = [
    ("{a} and {b}", "a"),
    ("t a: {a} b: {b} OPTIONS: - x - y", "b"),
    ("{a}{b}", ""),
    ("is {a} like that? {b}", ""),
]


@pytest.mark.parametrize(("template", "context"), TEMPLATES)
@given(data=st.data())
def test_a_rows_own_text_is_its_columns_whatever_the_template_says_around_them(template, context, data):
    task = TaskSpec(name="t", text=template, context=context, label="y", labels=["x", "y"])
    text = st.text("cde \n.", max_size=12).map(str.strip)  # no letter of the templates' words
    row = {"a": data.draw(text), "b": data.draw(text)}
    found = own_text(task, Example(*render(task, row), target="x"))
    kept = "".join(row.values()) if template == "{a}{b}" else "\n".join(filter(None, row.values()))
    assert found == kept


def test_of_a_row_that_holds_the_templates_words_no_word_is_lost():
    task = TaskSpec(name="t", text="a: {a} b: {b}", label="y", labels=["x", "y"])
    row = {"a": "one b: two", "b": "three b: four"}
    assert own_text(task, Example(*render(task, row), target="x")).split() == [
        "one",
        "two",
        "b:",
        "three",
        "b:",
        "four",
    ]


def test_a_text_of_another_template_is_taken_whole():
    task = TaskSpec(name="t", text="a: {a} b: {b}", label="y", labels=["x", "y"])
    assert own_text(task, Example("c: one d: two", "", "", target="x")) == "c: one d: two"
