"""A device that is not there: its tensors live on the CPU but say `pretend:0`. It has no float64 (as MPS has none) and refuses operations that mix its tensors with the CPU's.
`with Device() as device:` inside, `tensor.to(device)` goes there and `.cpu()` comes back."""
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
PLACE, aten = torch.device("pretend:0"), torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
FACTORIES = ("tensor", "as_tensor")                  # these make their tensor before a mode sees them


class There(torch.Tensor):
    "A tensor that owns one on the CPU and says it is elsewhere."
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        t = torch.Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=PLACE)
        t.held = held
        return t

    def tolist(self): return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    there, here = ([t for t in given if isinstance(t, There) == which] for which in (True, False))
    if there and func not in COPIES and any(t.ndim for t in here): raise RuntimeError(f"{func} mixes a tensor of this device with one of the CPU")
    stays = torch.device(kwargs["device"]).type == "pretend" if kwargs.get("device") is not None else bool(there)
    if not there and not stays: return func(*args, **kwargs)
    if "device" in kwargs and stays: kwargs = kwargs | dict(device=torch.device("cpu"))
    held = lambda t: t.held if isinstance(t, There) else t
    out = func(*tree_map(held, args), **tree_map(held, kwargs))
    known = {id(held(t)): t for t in given}

    def brought(t):
        if not isinstance(t, torch.Tensor) or (func not in COPIES and id(t) in known): return known.get(id(t), t)
        if not stays: return t.clone() if func in COPIES else t
        if t.dtype in (torch.float64, torch.complex128): raise TypeError(f"this device has no float64, asked for by {func}")
        return There((t.clone() if func in COPIES else t).resolve_conj())
    return tree_map(brought, out)


class Device(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return computed(func, args, kwargs or {})

    def __enter__(self):
        self.real = {name: getattr(torch, name) for name in FACTORIES}
        for name, make in self.real.items(): setattr(torch, name, lambda *a, device=None, make=make, **k: make(*a, **k) if device is None else make(*a, **k).to(device))
        super().__enter__()
        return PLACE

    def __exit__(self, *error):
        for name, make in self.real.items(): setattr(torch, name, make)
        return super().__exit__(*error)
