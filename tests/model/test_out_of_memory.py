"""When memory is full, work goes on with fewer things at once."""

from __future__ import annotations

import gc
import weakref

import cv2
import pytest
import torch

from mam_model.out_of_memory import halving, is_device_full, is_processor_full, says_memory_is_full


class Full(RuntimeError):
    pass


def is_full(error: Exception) -> bool:
    return isinstance(error, Full)


def room_for(most: int, tried: list[int]):
    def work(at_once: int) -> str:
        tried.append(at_once)
        if at_once > most:
            raise Full
        return f"done by {at_once}"

    return work


@pytest.mark.parametrize(
    ("at_once", "most", "expected"), [(8, 8, [8]), (8, 3, [8, 4, 2]), (7, 1, [7, 3, 1]), (1, 1, [1]), (6, 5, [6, 3])]
)
def test_half_as_many_are_tried_until_they_fit(at_once, most, expected):
    tried, told = [], []
    assert halving(room_for(most, tried), at_once, is_full, told.append) == f"done by {expected[-1]}"
    assert tried == expected
    assert told == expected[1:]


def test_if_not_even_one_fits_the_error_is_raised():
    tried = []
    with pytest.raises(Full):
        halving(room_for(0, tried), 4, is_full)
    assert tried == [4, 2, 1]


def test_other_errors_are_not_taken_for_full_memory():
    tried = []

    def work(at_once):
        tried.append(at_once)
        raise ValueError("The picture holds NaN.")

    with pytest.raises(ValueError, match="NaN"):
        halving(work, 4, is_full)
    assert tried == [4]


def test_what_an_attempt_has_made_is_gone_before_the_next_one():
    made = []

    def work(at_once):
        gc.disable()
        assert all(earlier() is None for earlier in made)
        tensor = torch.zeros(at_once)
        made.append(weakref.ref(tensor))
        if at_once > 1:
            raise Full
        return at_once

    try:
        assert halving(work, 4, is_full) == 1
    finally:
        gc.enable()
    assert len(made) == 3


@pytest.mark.parametrize(
    "sentence",
    [
        "MPS backend out of memory (MPS allocated: 5.56 GB, other allocations: 1.10 GB, max allowed: 6.80 GB).",
        "Invalid buffer size: 31.64 GiB",
        "Could not allocate tensor with 52428800 bytes. There is not enough GPU video memory available!",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
    ids=["a Mac", "a Mac's largest buffer", "DirectML", "Intel", "cuBLAS"],
)
def test_back_ends_without_an_error_of_their_own_are_understood(sentence):
    assert says_memory_is_full(RuntimeError(sentence))


def test_other_sentences_do_not_mean_full_memory():
    for error in (RuntimeError("Expected all tensors to be on the same device"), ValueError("Invalid buffer size")):
        assert not says_memory_is_full(error)


def test_the_memory_of_a_device_and_that_of_the_processor_are_told_apart():
    of_device = [torch.OutOfMemoryError("full"), RuntimeError("MPS backend out of memory (MPS allocated: 5 GB).")]
    of_processor = [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
    of_processor.append(cv2.error("(-4:Insufficient memory) Failed to allocate 9000000000 bytes"))
    for error in of_device:
        assert is_device_full(error) and not is_processor_full(error)
    for error in of_processor:
        assert is_processor_full(error) and not is_device_full(error)
    assert not is_device_full(RuntimeError("shapes differ")) and not is_processor_full(RuntimeError("shapes differ"))
