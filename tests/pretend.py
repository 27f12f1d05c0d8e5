"""A pretend accelerator on the CPU.

Its tensors say that they lie on `pretend:0`. An operation that mixes them with tensors of the CPU is an error, as it would be on a GPU; every wait for the device (a copy to
the host, `item`, `nonzero`, a boolean index) and every upload is counted by the line of fuse_nb that asked for it; and float64 can be refused, as Metal does.

    with Machine() as machine:
        lm = lm.to(DEVICE) ...
    machine.waits, machine.uploads      # Counters: line of ours -> how often
"""
import collections
import os
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend:0")
aten = torch.ops.aten

WAITS = {getattr(aten, name).default for name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")} | {aten.repeat_interleave.Tensor}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default, aten._unsafe_index.Tensor}
COPIES = {aten.copy_.default, aten._copy_from.default, aten._copy_from_and_resize.default}


class Pretend(torch.Tensor):
    "A wrapper around a CPU tensor, its `host`."
    @staticmethod
    def __new__(cls, host):
        made = torch.Tensor._make_wrapper_subclass(cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype, device=DEVICE)
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return Machine.now.run(func, args, kwargs or {})
    __torch_function__ = torch._C._disabled_torch_function_impl


def is_there(x): return isinstance(x, Pretend)
def inside(x): return x.host if is_there(x) else x


def through_the_host(make):
    "`torch.tensor(..., device=...)` builds out of the dispatcher's sight: build on the CPU, then copy."
    def made(data, *args, device=None, **kwargs):
        if device is None or torch.device(device).type != "pretend": return make(data, *args, **kwargs, **({} if device is None else dict(device=device)))
        if isinstance(data, torch.Tensor): return data.to(DEVICE, kwargs.get("dtype") or data.dtype)
        return make(data, *args, **kwargs).to(DEVICE)
    return made


class Machine(TorchDispatchMode):
    "Inside it the device exists."
    now = None
    def __init__(self, double=True):
        super().__init__()
        self.double, self.waits, self.uploads = double, collections.Counter(), collections.Counter()

    def __enter__(self):
        Machine.now, self.plain = self, (torch.tensor, torch.as_tensor)
        torch.tensor, torch.as_tensor = map(through_the_host, self.plain)
        Pretend.tolist = lambda t: t.cpu().tolist()
        self.overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)      # a parameter cannot become another class in place
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        torch.tensor, torch.as_tensor = self.plain
        torch.__future__.set_overwrite_module_params_on_conversion(self.overwrites)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        there, here = [x for x in leaves if is_there(x)], [x for x in leaves if not is_there(x)]
        wanted = kwargs.get("device")
        goes_there = torch.device(wanted).type == "pretend" if wanted is not None else bool(there)
        if func is aten._to_copy.default: self.count(bool(there) and not goes_there, any(x.numel() for x in here) and goes_there)     # of no numbers nothing is sent
        elif func in COPIES and there and here:
            goes_there = is_there(args[0])
            self.count(not goes_there, goes_there)
        elif there: self.check(func, args, here)
        if "device" in kwargs: kwargs = kwargs | dict(device=torch.device("cpu")) | (dict(pin_memory=None) if "pin_memory" in kwargs else {})
        out = func(*tree_map(inside, args), **tree_map(inside, kwargs))
        same = {id(inside(x)): x for x in leaves if func is not aten._to_copy.default}     # in place: the same object comes back
        return tree_map(lambda x: self.wrapped(x, same, goes_there, func), out)

    def count(self, waits, uploads):
        if waits: self.waits[line_of_ours()] += 1
        if uploads: self.uploads[line_of_ours()] += 1

    def check(self, func, args, here):
        indices = [i for i in args[1] if i is not None] if func in INDEXING else []
        mixed = [x for x in here if x.ndim > 0 and not any(x is i for i in indices)]       # an index may lie on the CPU: it is uploaded
        if mixed: raise RuntimeError(f"{func} mixes the device's tensors with the CPU's of shape {[tuple(x.shape) for x in mixed]} at {line_of_ours()}")
        if func in WAITS or any(is_there(i) and i.dtype in (torch.bool, torch.uint8) for i in indices): self.waits[line_of_ours()] += 1
        if any(not is_there(i) for i in indices): self.uploads[line_of_ours()] += 1

    def wrapped(self, x, same, goes_there, func):
        if not isinstance(x, torch.Tensor): return x
        if id(x) in same: return same[id(x)]
        if not goes_there: return x
        if x.dtype in (torch.float64, torch.complex128) and not self.double: raise TypeError(f"this device has no float64, which {func} makes at {line_of_ours()}")
        return Pretend(x.resolve_conj().resolve_neg().clone() if func is aten._to_copy.default else x.resolve_conj().resolve_neg())   # a wrapper carries no such bits


def line_of_ours():
    "The innermost line of fuse_nb on the stack."
    frame = sys._getframe(2)
    while frame and f"{os.sep}fuse_nb{os.sep}" not in frame.f_code.co_filename: frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}" if frame else "not in fuse_nb"
