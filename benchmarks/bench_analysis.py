"""Times psis-d2 analyze on a generated result.

    python benchmarks/bench_analysis.py --threads 1        # as large as COCO's validation set

5,000 images with 7 objects on average, a fifth of them without masks, and 100 detections with
masks; two heat-maps of 14 x 14 cells of every object. Each analysis is a command line, from its
files to its plot. "cpu s" is the time of all threads: where other processes keep the cores busy,
it says more than the wall's.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

from psis_d2.cli import main as psis_d2
from psis_d2.evaluation.base import write_predictions

import numpy as np
from common import parse_common, print_environment, print_table, save
from generated_result import HEIGHT, WIDTH, make_result
from measure import environment

CLASSES, DETECTIONS, CELLS = 80, 100, 14
SEEN = 20


def write_files(folder: Path, images: int) -> dict[str, str]:
    """Annotations, predictions, heat-maps and a list of seen categories; returns their paths."""
    truth, predictions = make_result(images, CLASSES, DETECTIONS)
    categories = [{"id": i, "name": name} for i, name in enumerate(truth.class_names)]
    annotations = []
    for annotation in truth.annotations:
        annotation = dict(annotation)
        if "segmentation" in annotation:
            rle = annotation["segmentation"]
            annotation["segmentation"] = {**rle, "counts": rle["counts"].decode()}
        annotations.append(annotation)
    listed = [
        {"id": key, "file_name": f"{key}.jpg", "height": HEIGHT, "width": WIDTH}
        for key in truth.image_sizes
    ]
    content = {"images": listed, "categories": categories, "annotations": annotations}
    (folder / "truth.json").write_text(json.dumps(content))
    write_predictions(str(folder / "results.json"), predictions, range(CLASSES))
    (folder / "seen.txt").write_text("".join(f"{name}\n" for name in truth.class_names[:SEEN]))
    (folder / "maps").mkdir()
    rng = np.random.default_rng(0)
    of_image: dict[int, list] = {key: [] for key in truth.image_sizes}
    for annotation in truth.annotations:
        of_image[annotation["image_id"]].append(annotation["bbox"])
    for key, boxes in of_image.items():
        corners = np.array(boxes, np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        maps = {
            f"map_{name}": rng.random((len(boxes), CELLS, CELLS), np.float32).astype(np.float16)
            for name in ("saliency", "shape activation")
        }
        path = folder / "maps" / f"{key}.heat-maps.npz"
        np.savez(path, file_name=f"{key}.jpg", boxes=corners, **maps)
    names = ("truth.json", "results.json", "seen.txt", "maps")
    return {name.partition(".")[0]: str(folder / name) for name in names}


def measure_analysis(name: str, words: list[str], folder: Path) -> dict[str, str]:
    """The row of an analysis."""
    words = ["analyze", name, *words, "--output", str(folder / name)]
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        psis_d2(words)
    return {
        "analysis": name,
        "wall s": f"{time.perf_counter() - wall:.1f}",
        "cpu s": f"{time.process_time() - cpu:.1f}",
        "rows": str(sum(1 for _ in open(folder / f"{name}.csv")) - 1),
    }


def main() -> None:
    """Parses the arguments, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    args = parse_common(parser)
    facts = environment("cpu") | {"cores": str(os.cpu_count())}
    print_environment(facts)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = write_files(folder, args.images)
        truth = ["--truth", files["truth"]]
        saved = ["--seen", files["seen"], "--predictions", files["results"]]
        analyses = {
            "overlap": [*truth, *saved],
            "false-positives": [*truth, *saved],
            "best-overlap": [*truth, "--maps", files["maps"]],
        }
        rows = [measure_analysis(name, words, folder) for name, words in analyses.items()]
    rows = [{"images": str(args.images)} | row for row in rows]
    print_table(rows)
    if args.save:
        save("analysis", rows, facts, args.save)


if __name__ == "__main__":
    main()
