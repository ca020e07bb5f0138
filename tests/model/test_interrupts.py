"""Ctrl-C in a terminal is heard by the first process alone."""

import multiprocessing
import signal
import threading

import pytest

from mam_model.interrupts import stop_noted, unheard_by_children

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="this system has no masks of signals")


def answer_whether_blocked(answers) -> None:
    answers.put(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_a_process_is_born_deaf_to_ctrl_c_and_the_one_that_starts_it_hears_it_afterwards():
    heard = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.set())
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    try:
        with unheard_by_children():
            child = context.Process(target=answer_whether_blocked, args=(answers,))
            child.start()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert not heard.is_set()
        assert heard.wait(1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert answers.get(timeout=60)
    child.join()


def test_a_run_in_the_background_of_a_script_which_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_noted() as stop_asked:
            signal.raise_signal(signal.SIGINT)
            assert not stop_asked()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_first_ctrl_c_is_noted_and_the_second_one_heard():
    with stop_noted() as stop_asked:
        assert not stop_asked()
        signal.raise_signal(signal.SIGINT)
        assert stop_asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
