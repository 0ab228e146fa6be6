"""What the benchmarks share: the environment line, timing, the correctness gate, the table."""

import csv
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def describe_environment(device: str) -> str:
    """One line: what the numbers were measured on and with."""
    if device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        machine += f", {torch.get_num_threads()} threads"
    return f"PyTorch {torch.__version__}, {machine}"


def milliseconds(function: Callable[[], object], device: str, seconds: float) -> float:
    """Time of one call.

    On a CPU the smallest of the runs, since other load only adds; on CUDA the median by events.

    Args:
        function: what to time; called twice before for warm-up.
        device: "cpu" or "cuda".
        seconds: how long to repeat it, at least three times.
    """
    times: list[float] = []
    for _ in range(2):
        function()
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            before = time.perf_counter()
            function()
            times.append((time.perf_counter() - before) * 1e3)
    return statistics.median(times) if device == "cuda" else min(times)


def peak_megabytes(function: Callable[[], object], device: str) -> float:
    """Memory of one call at its peak, above what there was before, in MB of 10^6 bytes.

    Args:
        function: what to measure; called once before for warm-up.
        device: "cpu" or "cuda".
    """
    function()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [e for e in events if e.get("name") == "[memory]"]
    in_use = peak = 0
    for event in sorted(changes, key=lambda e: e["ts"]):
        in_use += event["args"]["Bytes"]
        peak = max(peak, in_use)
    return peak / 1e6


def run(function: Callable, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Output and gradients of all inputs."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]


def largest_error(result: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest relative error of the norm; infinite if anything is not finite."""
    errors = []
    for value, exact in zip(result, expected, strict=True):
        error = (value.double() - exact).norm() / exact.norm()
        errors.append(error.item() if error.isfinite() else float("inf"))
    return max(errors)


def print_table(rows: Sequence[dict[str, str]]) -> None:
    """Aligned columns, headed by the keys of the first row."""
    columns = list(rows[0])
    width = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    for row in ({c: c for c in columns}, *rows):
        print("  ".join(row[c].ljust(width[c]) for c in columns).rstrip())
    sys.stdout.flush()


def write_csv(path: str, rows: Sequence[dict[str, str]]) -> None:
    """The same table as a file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
