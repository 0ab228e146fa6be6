"""One tester for all compiled ops: an op's test class says what the op is, the proofs are here."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# Allowed relative error of the norm, against the reference in float64. Half types are measured
# against the reference in the same dtype instead, see OpTester.check.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
HALF_TYPES = (torch.float16, torch.bfloat16)
HALF_FACTOR = 2.0  # at most twice the error of PyTorch in the same dtype


def relative_error(value: Tensor, expected: Tensor, scale: float = 1e-30) -> float:
    """||value - expected|| / max(||expected||, scale) in float64; 0 for two empty tensors."""
    value, expected = value.detach().double().cpu(), expected.detach().double().cpu()
    difference = (value - expected).norm().item()
    return difference / max(expected.norm().item(), scale)


class OpTester(ABC):
    """Compares an op, values and gradients, with its expected function.

    `inputs` of a case are the differentiable tensors in float64, `args` the remaining arguments.
    """

    @abstractmethod
    def fn(self, *args):
        """The op under test."""

    @abstractmethod
    def expected_fn(self, *args):
        """What it must equal, differentiable PyTorch."""

    def check(
        self,
        inputs: Sequence[Tensor],
        args: Sequence,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        scale: float = 1e-30,
        tolerance: float | None = None,
    ) -> None:
        """Values and all gradients of one case.

        Args:
            inputs: float64 tensors, possibly not contiguous.
            args: arguments behind them.
            dtype: dtype of the op under test.
            device: its device; the expectation is computed on the CPU.
            scale: errors are relative to at least this norm, for gradients that are exactly, or
                to any dtype, zero.
            tolerance: of float32 and float64, where TOLERANCE does not fit; say why.
        """
        inputs = [_cast(t, dtype, "cpu") for t in inputs]  # what dtype can represent
        result = self._run(self.fn, [_cast(t, dtype, device) for t in inputs], args)
        exact = self._run(self.expected_fn, [t.double() for t in inputs], args)
        in_dtype = None
        if dtype in HALF_TYPES:
            in_dtype = self._run(self.literal_fn, inputs, args)
        for i, (value, expected) in enumerate(zip(result, exact, strict=True)):
            name = "output" if i == 0 else f"gradient of input {i - 1}"
            assert value.dtype == dtype and value.device.type == torch.device(device).type, name
            assert value.shape == expected.shape, name
            assert value.isfinite().all(), f"{name} is not finite"
            if in_dtype is None:
                allowed = TOLERANCE[dtype] if tolerance is None else tolerance
            else:
                rounding = torch.finfo(dtype).eps
                allowed = HALF_FACTOR * relative_error(in_dtype[i], expected) + rounding
            error = relative_error(value, expected, scale)
            assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"

    def literal_fn(self, *args):
        """PyTorch in the dtype of its inputs, the yardstick of half types."""
        return self.expected_fn(*args)

    def check_repeatable(self, inputs: Sequence[Tensor], args: Sequence) -> None:
        """Three runs give the same bits."""
        first, *others = [self._run(self.fn, inputs, args) for _ in range(3)]
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))

    def check_func_transforms(self, inputs: Sequence[Tensor], args: Sequence) -> None:
        """torch.func.grad agrees with backward; forward mode, which would give zero, is refused."""

        def loss(*tensors):
            return self.fn(*tensors, *args).square().sum()

        inputs = [t.detach() for t in inputs]
        leaves = [t.clone().requires_grad_() for t in inputs]
        expected = torch.autograd.grad(loss(*leaves), leaves)
        found = torch.func.grad(loss, argnums=tuple(range(len(inputs))))(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        for i, tensor in enumerate(inputs):
            others = list(inputs)
            with torch.autograd.forward_ad.dual_level():
                others[i] = torch.autograd.forward_ad.make_dual(tensor, torch.ones_like(tensor))
                with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                    loss(*others)
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.func.jvp(loss, tuple(inputs), tuple(torch.ones_like(t) for t in inputs))

    def _run(self, fn, inputs, args) -> list[Tensor]:
        """Output and the gradients of all inputs for one fixed, uneven output gradient."""
        inputs = [t.detach().requires_grad_() for t in inputs]
        output = fn(*inputs, *args)
        ramp = torch.arange(output.numel(), dtype=torch.float64).reshape(output.shape)
        seed = (1.0 + torch.sin(ramp)).to(output)
        grads = torch.autograd.grad(output, inputs, seed, materialize_grads=True)
        return [output.detach(), *grads]


def _cast(tensor: Tensor, dtype, device) -> Tensor:
    """Casts without making a tensor contiguous that is not."""
    dense = tensor.detach().to(device=device, dtype=dtype)
    if tensor.is_contiguous():
        return dense
    spread = dense.new_empty(*tensor.shape, 2)[..., 0]
    return spread.copy_(dense)
