"""Measuring: times, ceilings, launches, memory, and the words for what they were measured on."""

import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = {"cpu": 2, "cuda": 20}  # calls
LEAST_RUNS = {"cpu": 3, "cuda": 20}


@dataclass(frozen=True)
class Time:
    """Microseconds of one call.

    On CUDA the median by events. On a CPU the smallest, since other load only adds.
    """

    best: float  # what the tables show
    p10: float
    p90: float

    def joined(self, other: "Time", device: str) -> "Time":
        """Of two measurements of the same thing."""
        best = min(self.best, other.best)
        if device == "cuda":
            best = (self.best + other.best) / 2
        return Time(best, min(self.p10, other.p10), max(self.p90, other.p90))


def measure(function: Callable[[], object], device: str, seconds: float) -> Time:
    """Times calls of `function`, one by one, for at least `seconds`.

    On CUDA all calls are queued before the first time is read, so the host does not slow them
    unless it is slower than the device.
    """
    for _ in range(WARM_UP[device]):
        function()
    times: list[float] = []
    start = time.perf_counter()
    if device == "cuda":
        torch.cuda.synchronize()
    while len(times) < LEAST_RUNS[device] or time.perf_counter() - start < seconds:
        if device == "cuda":
            pairs = []
            for _ in range(20):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                function()
                end.record()
                pairs.append((begin, end))
            torch.cuda.synchronize()
            times += [begin.elapsed_time(end) * 1e3 for begin, end in pairs]
        else:
            before = time.perf_counter()
            function()
            times.append((time.perf_counter() - before) * 1e6)
    deciles = statistics.quantiles(times, n=10)
    middle = statistics.median(times)
    return Time(middle if device == "cuda" else min(times), deciles[0], deciles[-1])


def host_microseconds(function: Callable[[], object]) -> float:
    """Time until a call on CUDA returns, which bounds an op of many launches."""
    times = []
    for _ in range(20):
        torch.cuda.synchronize()
        before = time.perf_counter()
        function()
        times.append((time.perf_counter() - before) * 1e6)
    torch.cuda.synchronize()
    return statistics.median(times)


def graphed(function: Callable[[], object]) -> Callable[[], object] | None:
    """`function` as a CUDA graph that replays without gaps between launches; None if it cannot."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


# ---------------------------------------------------------------------------------- ceilings


@dataclass(frozen=True)
class Ceilings:
    """What this process reaches on this device with library calls.

    Attributes:
        copy: bytes read + written per second by a large copy.
        fp32: float32 operations per second of a large matrix product without TF32.
        matmul: operations per second of a large matrix product in bfloat16 (CUDA) or float32.
    """

    copy: float
    fp32: float
    matmul: float

    def __str__(self) -> str:
        return (
            f"copy {self.copy / 1e9:.0f} GB/s, fp32 {self.fp32 / 1e12:.2f} TFLOP/s, "
            f"matmul {self.matmul / 1e12:.2f} TFLOP/s"
        )


@dataclass(frozen=True)
class Work:
    """The least that any implementation of a case has to do.

    Attributes:
        moved: bytes, every input read once and every output written once.
        fp32: float32 operations outside of matrix products.
        matmul: operations of matrix products.
    """

    moved: float
    fp32: float = 0.0
    matmul: float = 0.0

    def floor(self, ceilings: Ceilings) -> float:
        """Microseconds that the slowest of the three takes at the measured ceilings."""
        seconds = (
            self.moved / ceilings.copy,
            self.fp32 / ceilings.fp32,
            self.matmul / ceilings.matmul,
        )
        return max(seconds) * 1e6


def measure_ceilings(device: str, seconds: float = 0.3) -> Ceilings:
    """Measures them; a few seconds."""
    size = 8192 if device == "cuda" else 1024

    def copy() -> float:
        count = (4 << 30) if device == "cuda" else (64 << 20)
        source = torch.ones(count // 4, device=device)
        target = torch.zeros_like(source)
        return 2 * count / measure(lambda: target.copy_(source), device, seconds).best * 1e6

    def product(dtype: torch.dtype) -> float:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * size**3 / measure(lambda: torch.mm(a, b, out=out), device, seconds).best * 1e6

    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    fp32 = product(torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return Ceilings(copy(), fp32, product(torch.bfloat16) if device == "cuda" else fp32)


# -------------------------------------------------------------------------- launches, memory


@dataclass(frozen=True)
class Footprint:
    """What one call leaves in a profile.

    Attributes:
        launches: CUDA kernels that it starts; 0 on a CPU.
        peak: bytes that it has allocated at most at once, over what was there before.
    """

    launches: int
    peak: int


def footprint(function: Callable[[], object], device: str) -> Footprint:
    """Runs `function` a few times, once in a profile."""
    function()
    launches = sum(event.get("cat") == "kernel" for event in trace(function, device))
    return Footprint(launches, peak_memory(function, device))


def peak_memory(function: Callable[[], object], device: str) -> int:
    """Bytes that a call has allocated at most at once, over what was there before."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return peak_of(trace(function, device))


def peak_of(events: list[dict]) -> int:
    """Bytes that were allocated at most at once in the events of :func:`trace` on a CPU."""
    allocations = [e for e in events if e.get("name") == "[memory]"]
    now = peak = 0
    for event in sorted(allocations, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def trace(function: Callable[[], object], device: str) -> list[dict]:
    """Events of one call, as the profiler's Chrome trace has them."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        function()
        if device == "cuda":
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))["traceEvents"]


# ------------------------------------------------------------------------------- environment


def _command(*words: str) -> str:
    """First line of a command's output, "" if it does not run."""
    try:
        result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    except OSError:
        return ""
    return result.stdout.strip().splitlines()[0] if result.stdout.strip() else ""


def device_name(device: str) -> str:
    """The product's name of the GPU or CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1] for line in text.splitlines() if line.startswith("model name")]
    return " ".join(names[0].split()) if names else platform.machine()


def environment(device: str) -> dict[str, str]:
    """What a number was measured on and with, by column."""
    facts = {
        "device": device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "commit": _command("git", "rev-parse", "--short", "HEAD") or "unknown",
    }
    if device == "cpu":
        facts["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()}"
        facts["instructions"] = torch.backends.cpu.get_cpu_capability()
        return facts
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    query = ("nvidia-smi", "--format=csv,noheader", "--query-gpu=driver_version,clocks.max.sm")
    driver, _, clock = _command(*query).partition(", ")
    facts["cudnn"] = str(torch.backends.cudnn.version())
    facts["driver"], facts["max_clock"] = driver or "unknown", clock or "unknown"
    facts["processors"] = str(properties.multi_processor_count)
    facts["l2"] = f"{properties.L2_cache_size >> 20} MiB"
    facts["tf32"] = str(torch.backends.cuda.matmul.allow_tf32)
    return facts
