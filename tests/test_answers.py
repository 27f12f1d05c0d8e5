"A batch that does not fit the memory is read in halves, whatever the device calls it."
import pytest
import torch

from fuse_nb.answers import in_halves


def no_room(): return torch.empty(2**46, dtype=torch.uint8)             # 64 TB: the message of this machine's own allocator


def said(message):
    def fail(): raise RuntimeError(message)
    return fail


def numpy_says(): raise MemoryError("Unable to allocate 64.0 TiB for an array")


WAYS = {"the host's own": no_room, "host, Linux": said("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 396361728 bytes."),
        "host, Windows": said("[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to allocate 396361728 bytes."),
        "MPS": said("MPS backend out of memory (MPS allocated: 9 GB)"), "numpy": numpy_says}


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_that_does_not_fit_is_halved(way):
    def read(rows):
        if len(rows) > 3: WAYS[way]()
        return list(rows)
    assert in_halves(read, list(range(10))) == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]


@pytest.mark.parametrize("way", WAYS)
def test_one_row_that_does_not_fit_is_an_error(way):
    with pytest.raises((RuntimeError, MemoryError)): in_halves(lambda rows: WAYS[way](), [1, 2])


def test_another_error_is_not_tried_again():
    asked = []
    def read(rows): asked.append(len(rows)); raise RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"): in_halves(read, range(8))
    assert asked == [8]
