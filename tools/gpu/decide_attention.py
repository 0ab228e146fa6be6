"""Says from a benchmark's CSV where affinity_attention's CUDA kernel beats PyTorch.

    python tools/gpu/decide_attention.py benchmarks/results/affinity_attention-<GPU>.csv

What it prints decides `_PYTORCH_IS_PREFERRED` in psis_d2/ops/_extension.py.
"""

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path


def decisions(rows: Iterable[dict[str, str]]) -> list[tuple[str, str, float, str]]:
    """(case, dtype, forward + backward of the fastest form of PyTorch over the kernel's, its name).

    Rows of one case and dtype belong together. Those without times, and times from a hot cache, do
    not count; torch.compile does not either, since the op's reference is not compiled.
    """
    times: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        skipped = "hot L2" in row["variant"] or row["variant"].startswith("compile")
        if row["both us"] and not skipped:
            times.setdefault((row["case"], row["dtype"]), {})[row["variant"]] = float(
                row["both us"]
            )
    found = []
    for (case, dtype), by_variant in times.items():
        rivals = {name: us for name, us in by_variant.items() if name.startswith("sdpa")}
        if "ours" in by_variant and rivals:
            best = min(rivals, key=rivals.get)
            found.append((case, dtype, rivals[best] / by_variant["ours"], best))
    return found


def main() -> None:
    """Prints a line a case and one with the decision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path)
    with open(parser.parse_args().csv, newline="", encoding="utf-8") as file:
        found = decisions(csv.DictReader(file))
    if not found:
        raise SystemExit("error: the file has no case with both the kernel and sdpa.")
    for case, dtype, ratio, best in found:
        winner = "kernel" if ratio > 1 else best
        print(f"{case:22} {dtype:9} {best} / kernel = {ratio:.2f}: {winner}")
    wins = sum(ratio > 1 for *_, ratio, _ in found)
    choice = {0: "keep PyTorch", len(found): "take the kernel"}.get(wins, "decide by size")
    print(f"decision: the kernel is faster in {wins} of {len(found)} cases: {choice}")


if __name__ == "__main__":
    main()
