"""What the benchmarks of the ops share. An op's own file says only what is the op's own:

    class Bench(OpBenchmark):
        op = "my_op"
        shapes = {"cpu": [(64, 24)], "cuda": [(512, 24), (128, 24)]}

        def make_case(self, shape, generator):       # tensors in float32 on the CPU
            n, c = shape
            return Case(f"{n},{c}", inputs=[torch.randn(n, c, generator=generator)], args=(2.0,))

        def exact(self, x, factor):                  # the definition, run in float64
            return x * factor

        def variants(self):
            return [
                Variant("authors", literal_form, "literal"),
                Variant("views", tuned_form, "tuned"),
                Variant("ours", psis_d2.ops.my_op, "ours", HALF_AND_SINGLE),
            ]

        def work(self, case, size):                  # size: bytes of an element
            n = case.inputs[0].numel()
            return Work(moved=2 * n * size, fp32=n), Work(moved=4 * n * size, fp32=3 * n)

    if __name__ == "__main__":
        main(Bench(), __doc__)

Every function of a variant is called `fn(*inputs, *args)` and returns a tensor or a tuple of them.
Inputs are differentiable and cast to the variant's dtype; `args` are anything else: tensors among
them are moved to the device but not cast. Beside each "literal" and "tuned" variant there run two
`torch.compile`s of it: "compile", for one shape, and "compile N", for any size of dimension 0.

Before a variant is timed, its outputs and gradients are compared with `exact` in float64; what is
wrong gets no times, and the script fails in the end. A function that cannot run a case raises
`Unsupported`, which becomes its row. A speed-up is the time of the fastest rival of a kind
(literal, tuned, compile) over the row's, forward and forward + backward. Floors are the larger of
least traffic and least arithmetic over the ceilings that the same process measured. On a CPU the
smallest of many runs counts and only ratios mean something; on CUDA the median, with inputs that
rotate through more memory than the L2 cache holds, and once more "hot" where a case fits there.
"""

import argparse
import csv
import math
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from psis_d2.ops import op_paths, with_kernels

import torch
from measure import (
    ROOT,
    Ceilings,
    Footprint,
    Time,
    Work,
    environment,
    footprint,
    graphed,
    host_microseconds,
    measure,
    measure_ceilings,
)
from torch import Tensor

__all__ = ["Case", "OpBenchmark", "Unsupported", "Variant", "Work", "main"]

SINGLE = (torch.float32,)
HALF_AND_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
RIVALS = ("literal", "tuned", "compile")
L2_TURNS = 3  # inputs rotate through this many times the L2 cache
MOST_SETS = 64
RESULTS = ROOT / "benchmarks" / "results"


class Unsupported(Exception):
    """A variant cannot run a case; the message says why in a few words."""


@dataclass(frozen=True)
class Case:
    """One point of the benchmark.

    Attributes:
        name: its first column.
        inputs: float32 tensors on the CPU that gradients are taken of.
        args: what follows them.
    """

    name: str
    inputs: list[Tensor]
    args: tuple = ()


@dataclass(frozen=True)
class Variant:
    """One implementation.

    Attributes:
        name: in the table.
        fn: called with a case's inputs and args.
        kind: "literal", "tuned" or "compile", which speed-ups are over; "ours"; or "other".
        dtypes: in which it is run.
        limit: relative error of the norm that it is allowed, None: the benchmark's.
        devices: where it runs.
        eager: what `fn` was compiled from, None if it was not.
        any_size: of a compiled variant, whether dimension 0 is symbolic.
    """

    name: str
    fn: Callable
    kind: str
    dtypes: Sequence[torch.dtype] = SINGLE
    limit: float | None = None
    devices: Sequence[str] = ("cpu", "cuda")
    eager: Callable | None = None
    any_size: bool = False


class OpBenchmark(ABC):
    """What is an op's own; see the head of this file.

    Attributes:
        op: its name in psis_d2.ops.
        shapes: by device, what `make_case` understands.
        limits: by dtype, the relative error of the norm that outputs and gradients are allowed.
    """

    op: str
    shapes: dict[str, list[tuple]]
    limits = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

    @abstractmethod
    def make_case(self, shape: tuple, generator: torch.Generator) -> Case:
        """The case of one shape."""

    @abstractmethod
    def exact(self, *arguments):
        """The op's definition; gets float64 inputs."""

    @abstractmethod
    def variants(self) -> list[Variant]:
        """Rivals and ours."""

    @abstractmethod
    def work(self, case: Case, size: int) -> tuple[Work, Work]:
        """Least work of forward, and of forward + backward, for elements of `size` bytes."""


# ------------------------------------------------------------------------------------ running


def as_tuple(output) -> tuple[Tensor, ...]:
    """An op's outputs."""
    return (output,) if isinstance(output, Tensor) else tuple(output)


@dataclass
class Call:
    """A function with inputs on a device, ready to be called again and again."""

    fn: Callable
    inputs: list[Tensor]
    args: tuple
    grads: list[Tensor] = field(default_factory=list)

    def forward(self):
        """Outputs, without a graph."""
        with torch.no_grad():
            return self.fn(*self.inputs, *self.args)

    def both(self) -> list[Tensor]:
        """Outputs, then the gradients of all inputs."""
        outputs = as_tuple(self.fn(*self.inputs, *self.args))
        grads = torch.autograd.grad(outputs, self.inputs, self.grads, materialize_grads=True)
        return [*(t.detach() for t in outputs), *grads]


def prepare(fn: Callable, case: Case, device: str, dtype: torch.dtype) -> Call:
    """A call with copies of the case's tensors and fixed, uneven output gradients."""
    inputs = [t.to(device, dtype, copy=True).requires_grad_() for t in case.inputs]
    args = tuple(a.to(device) if isinstance(a, Tensor) else a for a in case.args)
    call = Call(fn, inputs, args)
    for output in as_tuple(call.forward()):
        # Eighths up to 2: every dtype holds them exactly.
        uneven = (7 * torch.arange(output.numel(), device=device) % 16 + 1) / 8
        call.grads.append(uneven.reshape(output.shape).to(output.dtype))
    return call


def largest_error(result: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest relative error of the norm; infinite if anything is not finite."""
    errors = [0.0]
    for value, exact in zip(result, expected, strict=True):
        difference = (value.double() - exact.double()).norm().item()
        errors.append(difference / max(exact.double().norm().item(), 1e-30))
    return max(e if math.isfinite(e) else float("inf") for e in errors)


class Turns:
    """Calls one of several functions after the other."""

    def __init__(self, functions: Sequence[Callable[[], object]]):
        self.functions, self.turn = functions, 0

    def __call__(self):
        self.turn = (self.turn + 1) % len(self.functions)
        return self.functions[self.turn]()


def copies(call: Call, device: str) -> list[Call]:
    """Enough of them that no input or output gradient is still in the L2 cache at its turn."""
    if device == "cpu":
        return [call]
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    tensors = [*call.inputs, *call.grads]
    size = max(1, sum(t.numel() * t.element_size() for t in tensors))
    count = min(MOST_SETS, math.ceil(L2_TURNS * cache / size))
    references = [
        replace(
            call,
            inputs=[t.detach().clone().requires_grad_() for t in call.inputs],
            grads=[t.clone() for t in call.grads],
        )
        for _ in range(max(0, count - 1))
    ]
    return [call, *references]


def mark_any_size(call: Call) -> None:
    """Makes dimension 0 symbolic in what `torch.compile` will make of the call."""
    n = call.inputs[0].shape[0]
    if n < 2:
        raise Unsupported("sizes 0 and 1 are compiled for themselves")
    for t in (*call.inputs, *(a for a in call.args if isinstance(a, Tensor))):
        if t.dim() and t.shape[0] == n:
            torch._dynamo.maybe_mark_dynamic(t, 0)  # a form may be of one size by nature


def with_compiled(variants: Sequence[Variant]) -> list[Variant]:
    """Adds the compiled forms of every literal and tuned variant."""
    # One function is compiled for every dtype, with and without gradients, for one and any size.
    torch._dynamo.config.recompile_limit = 64
    found = []
    for variant in variants:
        found.append(variant)
        if variant.kind not in ("literal", "tuned"):
            continue
        for name, any_size in (("compile", False), ("compile N", True)):
            # mark_any_size makes one dimension symbolic; dynamic=True would make all of them.
            fn = torch.compile(variant.fn, fullgraph=True, dynamic=None if any_size else False)
            kind = "other" if any_size else "compile"
            label = f"{name} {variant.name}"
            settings = {"kind": kind, "any_size": any_size, "eager": variant.fn}
            found.append(replace(variant, name=label, fn=fn, **settings))
    return found


# ------------------------------------------------------------------------------------- a case


@dataclass
class Result:
    """A variant at a case in a dtype. `problem`: why there are no times."""

    variant: Variant
    dtype: torch.dtype
    hot: bool = False
    error: float = float("nan")
    problem: str = ""
    wrong: bool = False
    times: dict[str, Time] = field(default_factory=dict)  # "fwd", "both"
    spread: float = 0.0  # of two measurements, the larger of fwd's and both's
    graph: dict[str, float] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)
    prints: dict[str, Footprint] = field(default_factory=dict)


def check(bench: OpBenchmark, case: Case, result: Result, device: str, exact: list[Tensor]) -> Call:
    """The call of a variant once its values are proved; raises Unsupported otherwise."""
    variant, dtype = result.variant, result.dtype
    call = prepare(variant.eager or variant.fn, case, device, dtype)
    call.fn = variant.fn
    if variant.any_size:
        mark_any_size(call)
    # What the op does not write is NaN then, unless the allocator takes other memory.
    poison = [torch.full_like(t, float("nan")) for t in (*call.grads, *call.inputs)]
    del poison
    result.error = largest_error(call.both(), exact)
    limit = bench.limits[dtype] if variant.limit is None else variant.limit
    if not result.error <= limit:
        result.wrong = True
        raise Unsupported(f"wrong by {result.error:.1e}, allowed {limit:.0e}")
    return call


def measure_once(result: Result, calls: list[Call], device: str, seconds: float) -> None:
    """One of the two measurements of a result."""
    for what in ("fwd", "both"):
        method = "forward" if what == "fwd" else "both"
        time = measure(Turns([getattr(c, method) for c in calls]), device, seconds)
        if what not in result.times:
            result.times[what] = time
            continue
        before = result.times[what]
        result.spread = max(result.spread, abs(time.best / before.best - 1))
        result.times[what] = before.joined(time, device)


def measure_details(result: Result, call: Call, device: str, seconds: float) -> None:
    """Launches, memory; on CUDA also the time of a graph's replay and of the host."""
    for what, function in (("fwd", call.forward), ("both", call.both)):
        result.prints[what] = footprint(function, device)
        if device == "cuda":
            result.host[what] = host_microseconds(function)
            replay = graphed(function)
            if replay is not None:
                result.graph[what] = measure(replay, device, seconds / 2).best


def run_case(
    bench: OpBenchmark, case: Case, device: str, seconds: float, variants: Sequence[Variant]
) -> list[Result]:
    """All variants at one case."""
    torch._dynamo.reset()  # other shapes before must not make this one's code general
    exact: dict[torch.dtype, list[Tensor]] = {}
    results: list[Result] = []
    ready: list[tuple[Result, list[Call]]] = []
    for variant in variants:
        for dtype in variant.dtypes:
            result = Result(variant, dtype)
            results.append(result)
            if dtype not in exact:
                rounded = replace(case, inputs=[t.to(dtype) for t in case.inputs])
                exact[dtype] = prepare(bench.exact, rounded, device, torch.float64).both()
            try:
                call = check(bench, case, result, device, exact[dtype])
            except Unsupported as reason:
                result.problem = str(reason)
                continue
            except torch.cuda.OutOfMemoryError:
                result.problem = "out of memory"
                continue
            except Exception as error:
                if variant.eager is None:
                    raise
                result.problem = f"torch.compile fails: {type(error).__name__}"
                continue
            sets = copies(call, device)
            ready.append((result, sets))
            if variant.kind == "ours" and len(sets) > 1:
                hot = replace(result, hot=True, times={}, graph={}, host={}, prints={})
                results.append(hot)
                ready.append((hot, sets[:1]))
    exact.clear()
    for _ in range(2):
        for result, calls in ready:
            measure_once(result, calls, device, seconds)
    for result, calls in ready:
        measure_details(result, calls[0], device, seconds)
    return results


# ---------------------------------------------------------------------------------- the table


def rows_of(
    bench: OpBenchmark, case: Case, results: Sequence[Result], ceilings: Ceilings
) -> list[dict[str, str]]:
    """All columns of a case's results; the printed table leaves some out."""
    rows = []
    for result in results:
        size = torch.empty((), dtype=result.dtype).element_size()
        row = {
            "case": case.name,
            "variant": result.variant.name + (" (hot L2)" if result.hot else ""),
            "dtype": str(result.dtype).removeprefix("torch."),
            "rel.err": f"{result.error:.1e}",
            "problem": result.problem,
        }
        for what, work in zip(("fwd", "both"), bench.work(case, size), strict=True):
            row |= _columns(what, work, result, results, ceilings)
        row["spread"] = f"{result.spread:.0%}" if result.times else ""
        rows.append(row)
    return rows


def _columns(
    what: str, work: Work, result: Result, results: Sequence[Result], ceilings: Ceilings
) -> dict[str, str]:
    time, seen = result.times.get(what), result.prints.get(what)
    floor = work.floor(ceilings)
    names = ("us", "p10", "p90", "graph us", "host us", "GB/s", "floor us", "% floor")
    columns = dict.fromkeys((*names, "launches", "MB", *(f"x {k}" for k in RIVALS)), "")
    columns["floor us"] = f"{floor:.2f}"
    if time is not None:
        columns["us"], columns["p10"] = f"{time.best:.1f}", f"{time.p10:.1f}"
        columns["p90"] = f"{time.p90:.1f}"
        columns["GB/s"] = f"{work.moved / time.best / 1e3:.1f}"
        columns["% floor"] = f"{100 * floor / time.best:.0f}"
        for kind in RIVALS:
            rivals = [r.times[what].best for r in results if r.variant.kind == kind and r.times]
            if rivals:
                columns[f"x {kind}"] = f"{min(rivals) / time.best:.2f}"
    if what in result.graph:
        columns["graph us"] = f"{result.graph[what]:.1f}"
    if what in result.host:
        columns["host us"] = f"{result.host[what]:.1f}"
    if seen is not None:
        columns["launches"] = str(seen.launches) if seen.launches else ""
        columns["MB"] = f"{seen.peak / 1e6:.1f}"
    return {f"{what} {name}": value for name, value in columns.items()}


SHORT = (
    ["case", "variant", "dtype", "rel.err", "fwd us", "both us", "spread", "fwd GB/s"]
    + ["fwd % floor", "both % floor", "fwd launches", "both launches", "fwd MB", "both MB"]
    + [f"{what} x {kind}" for kind in RIVALS for what in ("fwd", "both")]
)


def print_table(rows: Sequence[dict[str, str]], columns: Sequence[str] | None = None) -> None:
    """Aligned columns; those without a single entry are left out."""
    columns = [c for c in columns or list(rows[0]) if any(row.get(c) for row in rows)]
    width = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    for row in ({c: c for c in columns}, *rows):
        line = "  ".join(row[c].ljust(width[c]) for c in columns).rstrip()
        print(line + (f"  {row['problem']}" if row.get("problem") else ""))
    sys.stdout.flush()


def write_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """All columns as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def results_path(name: str, facts: dict[str, str], folder: Path = RESULTS) -> Path:
    """<folder>/<name>-<device>-pt<version>-cu<version>.csv"""
    device = re.sub(r"\W+", "-", facts["device"].replace("(R)", "")).strip("-")
    torch_version = facts["torch"].partition("+")[0]
    return folder / f"{name}-{device}-pt{torch_version}-cu{facts['cuda']}.csv"


# --------------------------------------------------------------------------------------- main


def parse_common(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds and parses the arguments that `make bench` may hand to every script."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU (default: its own)")
    parser.add_argument("--seconds", type=float, default=0.3, help="per measurement, each twice")
    parser.add_argument("--shapes", type=int, help="measure only the first so many shapes")
    parser.add_argument(
        "--save",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="FOLDER",
        help=f"write a CSV, into {RESULTS.relative_to(ROOT)} unless a folder is named",
    )
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: --device cuda, but PyTorch sees no CUDA device.")
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def save(
    name: str, rows: list[dict[str, str]], facts: dict[str, str], folder: Path = RESULTS
) -> None:
    """Writes rows with the environment as last columns, and says where.

    What a row says of its environment itself, its commit for example, stays.
    """
    path = results_path(name, facts, folder)
    write_csv(path, [row | {k: v for k, v in facts.items() if k not in row} for row in rows])
    print(f"wrote {os.path.relpath(path, ROOT)}")


def print_environment(facts: dict[str, str]) -> None:
    """One line, and how to run the same again."""
    print("; ".join(f"{name} {value}" for name, value in facts.items()))
    print("run: python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]))


def main(bench: OpBenchmark, description: str) -> None:
    """Runs a benchmark from the command line."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument(
        "--compile",
        choices=["all", "first", "none"],
        default="first",
        help="shapes that torch.compile runs too; it takes minutes a shape (default: first)",
    )
    parser.add_argument("--only", default="", help="run variants whose name matches this pattern")
    args = parse_common(parser)
    facts = environment(args.device)
    print_environment(facts)
    path = op_paths().get(bench.op, {}).get(args.device, "pytorch")
    print(f"{bench.op} on {args.device} runs by itself in: {path}; here in its kernel, if any")
    ceilings = measure_ceilings(args.device)
    print(f"ceilings: {ceilings}")
    plain = [v for v in bench.variants() if args.device in v.devices]
    rows, wrong = [], False
    for i, shape in enumerate(bench.shapes[args.device][: args.shapes]):
        case = bench.make_case(shape, torch.Generator().manual_seed(i))
        compiles = args.compile == "all" or (args.compile == "first" and i == 0)
        variants = with_compiled(plain) if compiles else plain
        variants = [v for v in variants if re.search(args.only, v.name)]
        with with_kernels():
            results = run_case(bench, case, args.device, args.seconds, variants)
        wrong |= any(r.wrong for r in results)
        found = rows_of(bench, case, results, ceilings)
        print_table(found, SHORT)
        rows += found
        if args.save:  # after each shape: what is stopped halfway has left something
            save(bench.op, rows, facts | {"ceilings": str(ceilings)}, args.save)
    if wrong:
        raise SystemExit(f"error: a variant of {bench.op} is wrong; see the table.")
