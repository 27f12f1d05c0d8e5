"A batch that does not fit the memory is read in halves, whatever the device calls it; losses are remembered by text."
from pretend import DEVICE, Machine  # before autograd is used: its threads are counted once
import pytest
import torch

from fuse_nb.answers import Remembered, in_halves


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


def test_a_devices_losses_come_down_with_the_next_that_are_read():
    with Machine(double=False) as machine:
        memory, asked = Remembered(), []
        memory.add(["a", "b"], torch.tensor([1.0, 2.0]).to(DEVICE))
        assert memory == {} and machine.waits.total() == 0

        def read(texts):
            asked.extend(texts)
            return torch.full((len(texts),), 3.0).to(DEVICE)

        def told(texts):
            memory.ask(texts, read)
            return memory.told(texts)

        assert told(["c", "a", "c", "b"]).tolist() == [3.0, 1.0, 3.0, 2.0]
        assert asked == ["c"] and machine.waits.total() == 1 and memory == {"a": 1.0, "b": 2.0, "c": 3.0}
        memory.add(["d"], torch.tensor([4.0]).to(DEVICE))
        assert told(["a"]).tolist() == [1.0] and machine.waits.total() == 1   # nobody asked for d
        assert told(["d"]).tolist() == [4.0] and asked == ["c"]
        memory.add(["e"], torch.tensor([5.0]).to(DEVICE))
        memory.forget(["a"])
        assert told(["a", "e"]).tolist() == [3.0, 5.0] and asked == ["c", "a"]
