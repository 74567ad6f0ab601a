"""The hub that does not answer: no waiting, and the libraries' caches still work."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from bmtpt.errors import BackboneError, DataError
from bmtpt.hub import hub_or_cache


class Client:
    """A stand-in for the hub's HTTP client."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def head(self, url: str, timeout: float) -> None:
        assert url == constants.ENDPOINT
        assert timeout < 10
        if self.error:
            raise self.error


@pytest.fixture
def hub(monkeypatch):
    """Sets what the hub's client does."""

    def becomes(error: Exception | None) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.get_session", lambda: Client(error))

    return becomes


@pytest.mark.parametrize(("error", "answers"), [(None, True), (ConnectionError(), False), (TimeoutError(), False)])
def test_the_libraries_are_offline_exactly_while_a_hub_that_does_not_answer_is_used(hub, error, answers):
    hub(error)
    with hub_or_cache() as found:
        assert found == answers
        assert (not answers) == constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_user_who_asked_to_be_offline_stays_offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("it asked the hub"))
    with hub_or_cache() as found:
        assert not found
    assert constants.HF_HUB_OFFLINE


def test_without_a_hub_rows_and_models_are_refused_at_once_with_the_cure(hub, monkeypatch):
    from bmtpt.backbone.model.load import load_config, load_tokenizer
    from bmtpt.tasks import load_data, load_task

    hub(ConnectionError())
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: pytest.fail("it tried again"))
    with pytest.raises(DataError, match=r"the hub does not answer and the data set is not in its cache.*'offline'"):
        load_data(load_task("sst2"), "hub")
    for load in (load_config, load_tokenizer):
        with pytest.raises(BackboneError, match=r"'no/model'.*the hub does not answer; give a folder or 'offline'"):
            load("no/model")


def test_a_folder_that_is_not_there_is_not_asked_for_on_the_hub(hub):
    from bmtpt.backbone.model.load import load_config, load_tokenizer

    hub(AssertionError("it asked the hub"))
    for load in (load_config, load_tokenizer):
        with pytest.raises(BackboneError, match="there is no folder '/nope'"):
            load("/nope")
