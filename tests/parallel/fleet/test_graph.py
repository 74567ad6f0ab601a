"""The walk through a graph of jobs, with an executor whose jobs end in any order."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bmtpt.errors import DataError, TrainingError
from bmtpt.parallel.fleet import Failure, run_jobs
from bmtpt.parallel.fleet.local import Here


class Scripted:
    """Ends one job at a time, the one that `choose` picks; jobs of `broken` fail."""

    def __init__(self, choose, slots=None, broken=()):
        self.choose, self.slots, self.broken = choose, slots, broken
        self.running, self.started, self.ended, self.done_before = [], [], [], {}

    def submit(self, work, jobs):
        self.running += jobs
        self.started += jobs
        self.done_before |= {job: set(self.ended) for job in jobs}

    def wait(self):
        job = self.running.pop(self.choose(len(self.running)))
        self.ended.append(job)
        return [(job, Failure("broken", "") if job in self.broken else job)]

    def close(self): ...


@st.composite
def graphs(draw):
    """Jobs 0, 1, … in any order, each of which needs some of those with lower numbers."""
    jobs = range(draw(st.integers(0, 9)))
    needs = {job: tuple(draw(st.sets(st.sampled_from(range(job))))) if job else () for job in jobs}
    return {job: needs[job] for job in draw(st.permutations(list(needs)))}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(graphs(), st.randoms(use_true_random=False), st.sampled_from([None, 1, 2]), st.sets(st.integers(0, 9)))
def test_a_job_starts_once_after_all_that_it_needs_and_never_if_one_of_them_failed(needs, random, slots, broken):
    executor = Scripted(random.randrange, slots, broken)
    for job, outcome in run_jobs(needs, None, executor):
        assert slots is None or len(executor.running) < slots
        assert isinstance(outcome, Failure) == (job in broken)
    assert all(set(needs[job]) <= before for job, before in executor.done_before.items())
    assert sorted(executor.ended) == sorted(executor.started) == sorted(set(needs) - after(needs, broken))


def after(needs, broken):
    """Return the jobs that need a broken one, directly or not."""
    found = set()
    for job in sorted(needs):
        found |= {job} if (broken | found) & set(needs[job]) else set()
    return found


def test_of_the_jobs_that_are_ready_the_first_starts_first():
    executor = Scripted(lambda _: 0, slots=1)
    list(run_jobs({"late stage": (), "cell": ("stage",), "other": (), "stage": ()}, None, executor))
    assert executor.started == ["late stage", "other", "stage", "cell"]


def test_a_cell_starts_when_its_own_stage_is_done_and_waits_for_no_other():
    executor = Scripted(lambda running: running - 1)  # the latest ends first
    list(run_jobs({"slow": (), "quick": (), "cell": ("quick",)}, None, executor))
    assert executor.started == ["slow", "quick", "cell"]


def test_a_mistake_of_the_users_ends_everything_and_an_error_in_training_only_its_job():
    def work(job):
        raise {"training": TrainingError, "data": DataError}[job]("so it is")

    ended = run_jobs({"training": (), "data": ()}, work, Here())
    job, failure = next(ended)
    assert (job, failure.sentence) == ("training", "so it is")
    with pytest.raises(DataError, match="so it is"):
        next(ended)


def test_a_failure_can_be_pickled_and_says_what_and_where():
    def work(_):
        raise OSError(28, "No space left")

    ((_, failure),) = run_jobs({1: ()}, work, Here())
    assert failure.sentence == "OSError: [Errno 28] No space left"
    assert "in work" in failure.trace
    assert pickle.loads(pickle.dumps(failure)) == failure
