"""Processes that work ahead give their answers in order, and tell what went wrong in them."""

from __future__ import annotations

import multiprocessing
from contextlib import closing

import pytest
import torch

from mam_model.training.workers import worked_ahead


def hundred_divided_by(number: int) -> torch.Tensor:
    return torch.tensor(100 // number)


@pytest.mark.parametrize("workers", [1, 3, 9])
def test_answers_come_in_the_order_of_the_jobs_and_then_nobody_is_left(workers):
    answers = worked_ahead(hundred_divided_by, range(1, 8), workers)
    assert [int(answer) for answer in answers] == [100, 50, 33, 25, 20, 16, 14]
    assert not multiprocessing.active_children()


def test_without_jobs_there_is_no_answer():
    assert list(worked_ahead(hundred_divided_by, (), 2)) == []


def test_an_error_comes_after_the_answers_before_it_and_says_where_it_was():
    answers = worked_ahead(hundred_divided_by, (50, 0, 25), 2)
    assert int(next(answers)) == 2
    with pytest.raises(ZeroDivisionError) as caught:
        next(answers)
    assert "in hundred_divided_by" in str(caught.value.__cause__)
    assert not multiprocessing.active_children()


def test_whoever_has_enough_leaves_no_process_behind():
    with closing(worked_ahead(hundred_divided_by, range(1, 100), 2)) as answers:
        assert int(next(answers)) == 100
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
