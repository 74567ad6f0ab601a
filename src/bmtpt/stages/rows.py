"""The rows that a stage trains on and validates on: drawn, divided and tokenised."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from bmtpt.backbone import Backbone
from bmtpt.errors import DataError, SettingsError
from bmtpt.inference.score import Scorer, answer_limit, make_scorer
from bmtpt.methods.target import TargetRows
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.tasks import TaskData, TaskSpec, few_shot, splits
from bmtpt.tasks.examples import picked, text_key
from bmtpt.tasks.orders import by_chance
from bmtpt.tasks.splits import stretches
from bmtpt.tasks.tokens import Streamed, Tokenised, TrainingRows, tokenise, training_rows, unknown_words
from bmtpt.tasks.units import divide, together
from bmtpt.types import Example

log = logging.getLogger("bmtpt")

LENGTHS_MATTER = 3
"""Difference between label words in tokens, from which their length is warned about."""

SHOWN = 60
"""Most characters of an answer in a message."""

MOST_TEXTS = 256
"""Texts without labels that are read at most: more would hardly move a readout."""

HELD_BACK_SHARE = 0.2
"""Share of a source's training rows that is held back if the source has no validation rows of its own."""


def source_rows(
    backbone: Backbone, sources: Sequence[TaskData], settings: LearnSettings
) -> tuple[dict[str, TrainingRows], dict[str, Tokenised], dict[str, Scorer]]:
    """Return training rows, held-back rows and how answers are read, by source task.

    Raises:
        DataError: A source has too few rows.
        TaskError: The tokenizer writes two label words of a source as the same tokens.
        SettingsError: `source_objective` "readout" is asked of free answers.
    """
    train: dict[str, TrainingRows] = {}
    held_back, scorers = {}, {}
    for source in sources:
        name, length = source.task.name, settings.max_length or source.task.max_length
        rows, held = held_back_rows(source)
        if not rows or not held:
            raise DataError(f"source {name} has {len(source.train)} training rows; at least 2 texts are needed")
        drawn = some(rows, settings.train_rows, settings.seed)
        train[name] = found = training_rows(backbone, drawn, length, settings.seed)
        if isinstance(found, Streamed):
            _tell_of_stream(name, found)
        warn_of_unwritable(backbone, source.task, found.looked_at if isinstance(found, Streamed) else found)
        scorers[name] = make_scorer(backbone, source.task)  # refuses label words that the tokenizer cannot tell apart
        held_back[name] = tokenise(backbone, some(held, settings.validation_rows, seed=0), length)
        if settings.batch_size > len(train[name]):
            log.warning(
                f"batch_size is {settings.batch_size:,}, and source {name} has {len(train[name]):,} training rows: "
                "every step takes each of them once"
            )
        if settings.source_objective == "readout":
            _require_halves(source.task, len(train[name]), len(held_back[name]))
        elif settings.likelihood == "labels" and not source.task.fixed_words:
            log.warning(f"source {name} has no label words, so its likelihood stays that of its answers' tokens")
    return train, held_back, scorers


def _tell_of_stream(name: str, rows: Streamed) -> None:
    """Say that rows are streamed, and warn if some of those looked at are too long."""
    looked = len(rows.looked_at)
    log.info("source %s: its %s training rows are read and tokenised as they are drawn", name, f"{len(rows):,}")
    if rows.cut:
        log.warning(
            f"source {name}: {rows.cut:,} of {looked:,} texts that were looked at, of {len(rows):,}, are longer than "
            f"{rows.max_length} tokens and are cut (max_length)"
        )


def _require_halves(task: TaskSpec, train: int, held_back: int) -> None:
    """Raise if a source's rows cannot be divided into those that a readout is fitted to and those that it answers."""
    if not task.fixed_words:
        raise SettingsError(
            f"source {task.name} has no label words, which source_objective 'readout' needs; leave the source out, or "
            "set source_objective to 'words'"
        )
    if min(train, held_back) < 2:
        raise DataError(
            f"source {task.name} has {train} rows to train on and {held_back} held back (at most validation_rows); "
            "source_objective 'readout' needs 2 of each"
        )


def held_back_rows(source: TaskData) -> tuple[Sequence[Example], Sequence[Example]]:
    """Return a source's rows to train on and those that are held back."""
    if source.select or not source.train:
        return source.train, source.select
    return divided(source.train, HELD_BACK_SHARE, seed=0)


def target_rows(backbone: Backbone, target: TaskData, settings: AdaptSettings) -> TargetRows:
    """Return a target's training rows (all, or a few-shot draw by the run's seed) and validation rows.

    Without validation rows of its own, or with `validation_rows` 0, a target lends a share of its training rows
    (`selection_share`), so that its `shots` are all the labels that are used. With `selection` "none" every row trains
    and nothing is validated. The target's texts without labels, and `unlabelled_rows` of the rows that the draw leaves
    out, go to the readouts.

    Raises:
        DataError: There are no rows, or fewer than the shots asked for.
        SettingsError: What needs label words is asked of free answers.
    """
    name = target.task.name
    need_words = {
        "ensemble": settings.ensemble,
        f"readout '{settings.readout}'": settings.readout != "none",
        f"likelihood '{settings.likelihood}'": settings.likelihood == "labels",
        f"average '{settings.average}'": settings.average in ("start", "starts"),
        f"calibrate '{settings.calibrate}'": settings.calibrate != "none",
    }
    if not target.task.fixed_words and (asked := [option for option, wanted in need_words.items() if wanted]):
        raise SettingsError(f"target {name} has no label words, which {asked[0]} needs; leave it out")
    pool = tuple(target.train)  # held as a whole: what is left out is told by identity
    train: Sequence[Example] = pool
    if settings.shots is not None:
        try:
            train = few_shot(train, settings.shots, settings.seed, settings.draw)
        except DataError as error:
            raise DataError(f"target {name}: {error}") from error
    labelled = train
    select = some(target.select, settings.validation_rows, seed=0)
    lent = not select
    if settings.selection == "none":
        select = ()
    elif train and not select:
        train, select = divided(train, settings.selection_share, settings.seed)
    if not train or not (select or settings.selection == "none"):
        raise DataError(
            f"target {name} has {len(labelled)} labelled rows for training and selection; at least 2 texts are "
            "needed, one for each (selection 'none' trains on all)"
        )
    if settings.calibrate != "none" and not select and len({example.text for example in train}) < 2:
        raise DataError(f"target {name} has one labelled text, and a temperature needs 2; leave calibrate out")
    counts, seen = target.label_counts, {example.label for example in train}
    if lost := [word for i, word in enumerate(counts) if counts[word]["train"] and i not in seen]:
        cure = "give more shots" + (", or draw 'balanced'" if settings.shots and settings.draw == "random" else "")
        log.warning(f"target {name}: of its {len(train):,} training rows none has the label '{lost[0]}'; {cure}")
    length = settings.max_length or target.task.max_length
    training = tokenise(backbone, train, length)
    warn_of_unwritable(backbone, target.task, training)
    limit = answer_limit(target.task, training.batch)
    scorer = make_scorer(backbone, target.task, answer_tokens=limit, normalise=settings.normalise)
    warn_of_lengths(scorer)
    drawn = set(map(id, labelled))
    left_out = [example for example in pool if id(example) not in drawn]
    unlabelled = [
        *some(target.unlabelled, MOST_TEXTS, settings.seed),
        *some(left_out, settings.unlabelled_rows, settings.seed),
    ]
    if target.unlabelled and settings.readout == "none":
        log.warning(f"target {name}: only a readout looks at texts without labels; set readout to 'offset' or 'linear'")
    selecting, texts = (tokenise(backbone, each, length) for each in (select, unlabelled))
    return TargetRows(training, selecting, scorer, lent, texts if unlabelled else None)


def warn_of_unwritable(backbone: Backbone, task: TaskSpec, rows: Tokenised) -> None:
    """Warn if answers cannot be written by the tokenizer, or label words hold unknown tokens: neither can be taught."""
    if task.fixed_words:
        if unknown := unknown_words(backbone.tokenizer, task.label_words):
            log.warning(
                "task %s: %d of %d label words, such as %r, have parts for which the tokenizer of backbone '%s' has no "
                "token; choose words that it knows",
                task.name, len(unknown), len(task.label_words), unknown[0][:SHOWN], backbone.name,
            )  # fmt: skip
        return
    if not rows.written:
        return
    answers = {answer for example in rows.examples for answer in (example.target, *example.references)}
    answer, shown = min(rows.written.items(), key=lambda pair: len(pair[0]))
    log.warning(
        "task %s: the tokenizer of backbone '%s' cannot write %d of %d answers, such as %r, which becomes %r",
        task.name, backbone.name, len(rows.written), len(answers), answer[:SHOWN], shown[:SHOWN],
    )  # fmt: skip


def warn_of_lengths(scorer: Scorer) -> None:
    """Warn of label words whose lengths decide who wins as long as a prompt is hardly trained (docs/method.md)."""
    tokens = {word: len(ids) for word, ids in zip(scorer.task.label_words, scorer.answers, strict=False)}
    if scorer.normalise != "none" or not tokens or max(tokens.values()) - min(tokens.values()) < LENGTHS_MATTER:
        return
    short, long = min(tokens, key=tokens.__getitem__), max(tokens, key=tokens.__getitem__)
    log.warning(
        "task %s: label word '%s' has %d tokens and '%s' %d; with few labels one may win for its length: prefer words "
        "of one length, or compare normalise 'pmi' and 'length'",
        scorer.task.name, short, tokens[short], long, tokens[long],
    )  # fmt: skip


def divided(examples: Sequence[Example], share: float, seed: int) -> tuple[Sequence[Example], Sequence[Example]]:
    """Divide rows in two, each with the labels in about their proportions; a single text goes to the first part.

    Rows of one text stay together: what is selected with must not have been trained on. Of more than `splits.LARGE`
    rows, each text is in the second part with probability ``share``, whatever its label.

    Args:
        share: Share of the second part, at least one text.
        seed: Seed of the order.
    """
    if len(examples) > splits.LARGE:
        chosen: Sequence[Sequence[int]] = by_chance(map(text_key, examples), len(examples), share, seed)
    else:
        count = min(len(examples) - 1, max(1, round(share * len(examples))))
        unit = together(map(text_key, examples))
        chosen = [part.tolist() for part in divide(unit, (each.label for each in examples), count, seed)]
    first, second = (picked(examples, positions) for positions in chosen)
    return first, second


def some(examples: Sequence[Example], count: int | None, seed: int) -> Sequence[Example]:
    """Return at most ``count`` rows, a seeded draw in the original order."""
    if count is None or len(examples) <= count:
        return examples
    return picked(examples, sorted(stretches(len(examples), seed, count)[0]))


def row_digests(rows: Mapping[str, TrainingRows]) -> list[tuple[str, str]]:
    """Return each task and the digest of its rows, in order: a run is only resumed on the rows that it began with."""
    return [(name, each.digest) for name, each in rows.items()]


def distinct(names: list[str], what: str) -> list[str]:
    """Return the names of the tasks of a stage.

    Raises:
        SettingsError: There is none, or one is given twice.
    """
    if not names:
        raise SettingsError(f"at least one {what} task is needed, and none was given")
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingsError(f"{what} task '{twice[0]}' was given twice; name each once")
    return names
