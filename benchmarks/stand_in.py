"""A device that is not there: CPU tensors that count what the host would wait for on a GPU.

    with StandInDevice() as device:
        model = device.place(build_model(cfg))     # parameters and buffers
        model(batch)                               # a batch on the CPU, which the model moves
    for place, number in device.places().items():
        print(number, place)

Every op runs on the CPU. One that mixes this device's tensors with the CPU's raises, as on CUDA;
one that lets the host wait for a GPU is counted with the line of Python that called it. That is
what ``torch.cuda.set_sync_debug_mode`` warns of: values that the host reads, results whose size
depends on values, and copies between the two that are not ``non_blocking``.
"""

import contextlib
import sys
from collections import Counter
from dataclasses import dataclass
from unittest import mock

import psis_d2.ops  # noqa: F401  (registers ops)

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers ops)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# A device type of PyTorch's that no wheel has kernels of, and whose gradients are computed in the
# thread that asks for them.
DEVICE = torch.device("lazy", 0)
_SKIPPED = ("/torch/", "/torchvision/", "/fvcore/", __file__)
# How often an op waits, other than for the masks among its indices and for copies. As in
# PyTorch's sources; torchvision's suppression reads how many boxes are left.
_WAITS = {
    "aten::_local_scalar_dense": 1,
    "aten::nonzero": 1,
    "aten::masked_select": 1,
    "aten::equal": 1,
    "aten::bincount": 2,
    "aten::multinomial": 2,
    "aten::repeat_interleave": 2,
    "aten::unique_consecutive": 1,
    "aten::unique_dim": 1,
    "aten::_unique": 1,
    "aten::_unique2": 1,
    "torchvision::nms": 1,
}
_MASKS = (torch.bool, torch.uint8)


class MixedDevices(RuntimeError):
    """An op got tensors of the stand-in device and of the CPU, which CUDA refuses."""


@dataclass(frozen=True)
class Wait:
    """One place where the host waits.

    Attributes:
        op: what waits, "aten::nonzero", "copy to the host", "copy to the device".
        place: "file:line" of the innermost frame outside of PyTorch, "backward" without one.
    """

    op: str
    place: str


class StandInTensor(Tensor):
    """A tensor of the stand-in device; `value` is the CPU's."""

    @staticmethod
    def __new__(cls, value: Tensor):
        tensor = Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=DEVICE,
        )
        tensor.value = value
        return tensor

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"StandInTensor({self.value!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, None)


class StandInDevice(TorchDispatchMode):
    """While it is entered, counts; see the head of this file.

    Attributes:
        waits: how often the host waited, by :class:`Wait`.
    """

    def __init__(self):
        super().__init__()
        self.waits: Counter[Wait] = Counter()
        self._entered = contextlib.ExitStack()

    def __enter__(self):
        self._entered.enter_context(_LikeCuda())
        self._entered.enter_context(mock.patch.object(torch, "autocast", _Autocast))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._entered.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, self)

    def place(self, module: nn.Module) -> nn.Module:
        """Puts parameters and buffers of a module on the device, in place; returns the module."""
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None and not isinstance(value, StandInTensor):
                    moved = StandInTensor(value.detach())
                    part._parameters[name] = nn.Parameter(moved, value.requires_grad)
            for name, value in part._buffers.items():
                if value is not None and not isinstance(value, StandInTensor):
                    part._buffers[name] = StandInTensor(value)
        return module

    @property
    def total(self) -> int:
        """How often the host waited."""
        return sum(self.waits.values())

    def places(self) -> dict[str, int]:
        """How often it waited, by "file:line what", the most frequent first."""
        by = Counter()
        for wait, number in self.waits.items():
            by[f"{wait.place} {wait.op}"] += number
        return dict(by.most_common())


class _Autocast(torch.autocast):
    """PyTorch's own refuses the device's type."""

    def __init__(self, device_type: str, *args, **kwargs):
        super().__init__("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)


class _LikeCuda(TorchFunctionMode):
    """Functions in C++ that do not ask the dispatcher, or that treat CUDA as they do not this."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.one_hot and isinstance(args[0], StandInTensor):
            return _one_hot(*args, **kwargs)
        if func is Tensor.unsqueeze_ and isinstance(args[0], StandInTensor):
            return args[0].unsqueeze(*args[1:], **kwargs)  # a wrapper's shape is for ever
        if func is Tensor.tolist and isinstance(args[0], StandInTensor):
            return args[0].cpu().tolist()
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            return _from_values(func, args, dict(kwargs))
        return func(*args, **kwargs)


def _from_values(func, args: tuple, kwargs: dict) -> Tensor:
    """A tensor of numbers of the host: made there, then copied."""
    device = kwargs.pop("device", None)
    if func is Tensor.new_tensor:
        like, *args = args
        func, device = torch.tensor, like.device if device is None else device
        kwargs.setdefault("dtype", like.dtype)
    made = func(*args, **kwargs)
    return made if device is None else made.to(device)


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        num_classes = int(tensor.max().item()) + 1
    zeros = torch.zeros(*tensor.shape, num_classes, dtype=tensor.dtype, device=tensor.device)
    return zeros.scatter_(-1, tensor[..., None], 1)


def _run(func, args: tuple, kwargs: dict, device: StandInDevice | None):
    """Runs an op on the CPU, as if on the device if it has a tensor of it or is to make one."""
    tensors: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            tensors += [x for x in value if isinstance(x, Tensor)]
    ours = [x for x in tensors if isinstance(x, StandInTensor)]
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    name = func.name().split(".")[0]
    target = bool(ours) if wanted is None else wanted.type == DEVICE.type
    copies = name in ("aten::_to_copy", "aten::copy_")
    if ours:
        _refuse_mixtures(name, func, args, tensors, copies)
    if device is not None:
        for op, number in _waits(name, args, kwargs, ours, target, copies):
            device.waits[Wait(op, _place())] += number
    inner_kwargs = dict(kwargs)
    if wanted is not None and target:
        inner_kwargs["device"] = torch.device("cpu")
    inner = [_unwrap(x) for x in args]
    result = func(*inner, **{key: _unwrap(x) for key, x in inner_kwargs.items()})
    if name == "aten::copy_" and not isinstance(args[0], StandInTensor):
        return args[0]
    if not target or name == "aten::_local_scalar_dense":
        return result
    return _wrap(func, args, kwargs, result)


def _wrap(func, args: tuple, kwargs: dict, result):
    """Results as tensors of the device; what an op wrote to is the tensor that it was given."""
    written = {}
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            for alias in argument.alias_info.before_set:
                written[alias] = value

    def of(value, returned):
        alias = returned.alias_info
        if alias is not None and alias.is_write:
            return written[next(iter(alias.before_set))]
        if isinstance(value, Tensor):
            return StandInTensor(value)
        return [StandInTensor(x) for x in value] if isinstance(value, (list, tuple)) else value

    returns = func._schema.returns
    if len(returns) == 1:
        return of(result, returns[0])
    if not returns:
        return result
    return tuple(of(*pair) for pair in zip(result, returns, strict=True))


def _refuse_mixtures(name: str, func, args: tuple, tensors: list[Tensor], copies: bool) -> None:
    others = [x for x in tensors if not isinstance(x, StandInTensor) and x.dim() > 0]
    if not others or copies or name == "aten::set_data":
        return
    by_indices = name in ("aten::index", "aten::index_put", "aten::index_put_")
    if (
        by_indices
        and isinstance(args[0], StandInTensor)
        and all(any(x is y for y in args[1]) for x in others)
    ):
        return  # indices may lie on the CPU: they are copied
    shapes = ", ".join(str(list(x.shape)) for x in others)
    raise MixedDevices(f"{name} mixes tensors of the device with CPU tensors of shape {shapes}")


def _waits(name, args, kwargs, ours, target, copies):
    """(what, how often) an op lets the host wait."""
    if copies:
        to_device = isinstance(args[0], StandInTensor) if name == "aten::copy_" else target
        source = args[1] if name == "aten::copy_" else args[0]
        blocking = not (
            kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2])
        )
        if isinstance(source, StandInTensor) != to_device and blocking:
            yield ("copy to the device" if to_device else "copy to the host"), 1
        return
    if not ours:
        return
    if name in _WAITS:
        if name == "aten::repeat_interleave" and kwargs.get("output_size") is not None:
            return
        yield name, _WAITS[name]
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        indices = [x for x in args[1] if x is not None]
        one_value = (
            name != "aten::index" and args[2].numel() == 1 and not (len(args) > 3 and args[3])
        )
        masks = sum(x.dtype in _MASKS for x in indices)
        if masks and not (one_value and len(indices) == 1):  # that is masked_fill
            yield f"{name} by a mask", masks
        far = sum(not isinstance(x, StandInTensor) for x in indices)
        if far:
            yield "copy to the device", far


def _unwrap(x):
    if isinstance(x, (list, tuple)):
        return [_unwrap(item) for item in x]
    return x.value if isinstance(x, StandInTensor) else x


def _place() -> str:
    """ "file:line" of the innermost frame that is none of PyTorch's, or "backward"."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.endswith("torch/autograd/graph.py"):  # the engine's caller
            return "backward"
        if not any(part in name for part in _SKIPPED):
            for root in ("detectron2/", "psis_d2/"):
                if f"/{root}" in name:
                    name = root + name.rpartition(f"/{root}")[2]
                    break
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward"
