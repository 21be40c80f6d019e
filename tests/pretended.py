"""A device that is none: it holds its tensors in the processor's memory and behaves like CUDA.

Tensors on it say that they are on another device. Operations that would make the processor wait
for a GPU are counted, with the place in the package that asks for them; what CUDA refuses, such
as tensors on two devices, is refused. So all but rounding and speed is tested without a GPU:

    with Pretended() as device:
        solution = solve_geodesic(metric_on(device), device.put(start), device.put(end))
    device.waits       # Counter of (operation, "file:line function")
"""

import copy
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

import geolatent

PLACE = torch.device("meta")
PACKAGE = str(Path(geolatent.__file__).parent)
aten = torch.ops.aten

# what makes the processor wait: results whose values, shapes or errors it must know
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
    aten._linalg_check_errors.default,
    aten._linalg_eigh.default,
    aten._linalg_svd.default,
    aten.linalg_lstsq.default,
}
# CUDA takes indices that lie in the processor's memory, and copies them
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Away(torch.Tensor):
    """A tensor of the pretended device, and where it really is."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=PLACE,
        )

    def __init__(self, held):
        self.held = held

    is_meta = False

    def __repr__(self):
        return f"Away({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        # only where the device was left: its tensors can still be looked at
        with Pretended():
            return function(*args, **(kwargs or {}))


class _Made(TorchFunctionMode):
    """Tensors that torch makes of Python's numbers before any operation is dispatched."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor):
            like, device = None, kwargs.get("device")
        elif function is torch.Tensor.new_tensor:
            like, device = args[0], kwargs.get("device", args[0].device)
            kwargs.setdefault("dtype", like.dtype)
        elif function is torch.Tensor.tolist and isinstance(args[0], Away):
            return args[0].cpu().tolist()
        elif function is torch.Tensor.numpy and isinstance(args[0], Away):
            if not kwargs.get("force"):
                raise TypeError("can't convert a tensor of a device to numpy")
            return args[0].detach().cpu().numpy()
        elif function is torch.Tensor.__setitem__ and isinstance(args[2], int | float):
            target, places, value = args
            if isinstance(places, Away) and places.dtype == torch.bool:  # CUDA fills it in
                beyond = [1] * (target.ndim - places.ndim)
                return target.masked_fill_(places.reshape(*places.shape, *beyond), value)
            places = places if isinstance(places, tuple) else (places,)
            if any(isinstance(place, Away) and place.dtype == torch.int64 for place in places):
                Pretended.current.wait("number to the device")
            return function(*args, **kwargs)
        else:
            return function(*args, **kwargs)
        if device is None or torch.device(device).type != PLACE.type:
            return function(*args, **kwargs)
        if function is torch.as_tensor and isinstance(args[0], torch.Tensor):
            return args[0].to(device, kwargs.get("dtype"))
        kwargs["device"] = "cpu"
        if like is None:
            return function(*args, **kwargs).to(PLACE)
        return torch.tensor(*args[1:], **kwargs).to(PLACE)


class Pretended(TorchDispatchMode):
    """The device, within a block; see above."""

    current = None

    def __init__(self):
        super().__init__()
        self.waits = Counter()
        self.operations = 0

    def __enter__(self):
        self._before, Pretended.current = Pretended.current, self
        self._made = _Made()
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        Pretended.current = self._before
        super().__exit__(*error)
        self._made.__exit__(*error)

    def holds(self, tensor):
        return isinstance(tensor, Away)

    def put(self, value):
        """Return a tensor, or a copy of a module, on the device."""
        if not isinstance(value, nn.Module):
            return value.to(PLACE)
        moved = copy.deepcopy(value)
        for module in moved.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    there = parameter.detach().to(PLACE)
                    module._parameters[name] = nn.Parameter(there, parameter.requires_grad)
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = buffer.to(PLACE)
        return moved

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("device")
        tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
        away = [tensor for tensor in tensors if isinstance(tensor, Away)]
        to = None if wanted is None else torch.device(wanted)
        if function is aten._efficientzerotensor.default:  # its zeros are nowhere
            zeros = torch.zeros(*args, dtype=kwargs.get("dtype"), device="cpu")
            return Away(zeros) if to is not None and to.type == PLACE.type else zeros
        if not away and (to is None or to.type != PLACE.type):
            return function(*args, **kwargs)
        self.operations += 1
        if to is not None and to.type == PLACE.type:
            kwargs["device"] = torch.device("cpu")
            if kwargs.get("generator") is not None:
                raise RuntimeError("Expected a generator of the device, found one of the CPU")
        self._note(function, args, kwargs, tensors, to)
        plain = tree_map_only(Away, lambda tensor: tensor.held, (args, kwargs))
        result = function(*plain[0], **plain[1])
        if to is not None and to.type != PLACE.type:
            return result
        if function is aten.copy_.default and not isinstance(args[0], Away):
            return args[0]
        back = {id(tensor.held): tensor for tensor in away}

        def wrap(value):
            if not isinstance(value, torch.Tensor):
                return value
            known = back.get(id(value))  # what was changed in place is returned as it is
            return Away(value) if known is None else known

        return tree_map(wrap, result)

    def _note(self, function, args, kwargs, tensors, to):
        here = [tensor for tensor in tensors if not isinstance(tensor, Away)]
        name = function.overloadpacket.__name__
        if function in (aten._to_copy.default, aten.copy_.default):
            back = not isinstance(args[0], Away) if to is None else to.type != PLACE.type
            # what is sent without blocking is staged first; what comes back must be waited for
            if back:
                self.wait("copy from the device")
            elif here and not (kwargs.get("non_blocking") or True in args[2:]):
                self.wait("copy to the device")
            return
        if function in WAITING:
            self.wait(name)
        if function in INDEXED:
            places = [place for place in args[1] if place is not None]
            if any(place.dtype == torch.bool for place in places):
                self.wait(f"{name} by a mask")
            for place in places:
                if not isinstance(place, Away):
                    self.wait("copy of indices to the device")
            here = [t for t in here if not any(t is place for place in places)]
        wrong = [tensor for tensor in here if tensor.ndim]
        if wrong:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {function} got one of shape "
                f"{tuple(wrong[0].shape)} on the CPU"
            )

    def wait(self, name):
        """Count a wait, by its name and the place in the package that asks for it."""
        self.waits[name, self._asking()] += 1

    def _asking(self):
        """Return where in the package the operation is asked for."""
        frame = sys._getframe(2)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        if frame is None:
            return "outside"
        file = Path(frame.f_code.co_filename).relative_to(PACKAGE)
        return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
