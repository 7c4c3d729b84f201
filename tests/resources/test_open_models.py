"""Models that stay open between the Steps of one process: never two where one was asked for."""

import pytest

from pipeline.resources import open_models


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setattr(open_models, "_keeps", True)
    monkeypatch.setattr(open_models, "_parked", [])
    return []


def opened(log: list[str], key: str) -> str:
    def load() -> str:
        log.append(f"load {key}")
        return key

    return open_models.borrow(key, load)


def park(log: list[str], key: str) -> None:
    open_models.park(key, key, lambda: log.append(f"close {key}"))


def test_the_same_model_is_loaded_once(log):
    park(log, opened(log, "a"))
    assert opened(log, "a") == "a"
    assert log == ["load a"]


def test_another_model_is_loaded_when_the_first_is_closed(log):
    park(log, opened(log, "a"))
    opened(log, "b")
    assert log == ["load a", "close a", "load b"]


def test_two_models_of_one_step_are_both_kept_for_the_next(log):
    for key in ("a", "b"):
        opened(log, key)
    for key in ("a", "b"):
        park(log, key)
    assert opened(log, "b") == "b" and opened(log, "a") == "a"
    assert log == ["load a", "load b"]


def test_what_is_in_use_is_no_longer_parked(log):
    park(log, opened(log, "a"))
    opened(log, "a")
    opened(log, "a")
    assert log == ["load a", "load a"], "two at a time are two models"


def test_a_process_that_builds_one_step_keeps_nothing(log, monkeypatch):
    monkeypatch.setattr(open_models, "_keeps", False)
    park(log, opened(log, "a"))
    assert log == ["load a", "close a"]
