"""What the ops' argument checks and autocast policies share.

``csrc/checks.h`` repeats the sentences.
"""

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def join_dtypes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The ops' autocast policy: never lower a dtype, bring different ones to their common one."""
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) == 1 or not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    dtype = tensors[0].dtype
    for other in dtypes:
        dtype = torch.promote_types(dtype, other)
    return tuple(tensor.to(dtype) for tensor in tensors)


def check_dtype(op: str, tensor: Tensor) -> None:
    """Raises TypeError unless it is one of DTYPES."""
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{op}: the dtype must be float16, bfloat16, float32 or float64, "
            f"not {dtype_name(tensor)}."
        )


def check_same_device(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError unless both are on one device."""
    if other.device != tensor.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device} but {other_name} is on {other.device}."
        )


def check_same_dtype(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises TypeError unless both have one dtype."""
    if other.dtype != tensor.dtype:
        raise TypeError(
            f"{op}: {name} is {dtype_name(tensor)} but {other_name} is {dtype_name(other)}."
        )


def dtype_name(tensor: Tensor) -> str:
    """Such as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")
