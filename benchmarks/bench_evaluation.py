"""Times COCO AP of a generated result, by both libraries, and what collecting predictions costs.

    python benchmarks/bench_evaluation.py                  # as large as COCO's validation set
    python benchmarks/bench_evaluation.py --test-dev 41000 # and its test-dev set collected

Images have 7 objects on average, a fifth of them without masks, and 100 detections with masks, half
of these near objects. Each library evaluates boxes and masks in a process of its own, whose peak
memory counts; the arrays have to be the same bit for bit. "cpu s" is the time of all threads: where
other processes keep the cores busy, it says more than the wall's. Collecting is encoding the masks
that a model puts out and, for test-dev, keeping and writing all of them.
"""

import argparse
import multiprocessing
import pickle
import resource
import tempfile
import time
from pathlib import Path

import psis_d2  # noqa: F401
from psis_d2.evaluation.average_precision import average_precision
from psis_d2.evaluation.base import write_predictions
from psis_d2.evaluation.predictions import ImagePredictions, encode_masks

import numpy as np
from common import parse_common, print_environment, print_table, save
from generated_result import make_result
from measure import environment, measure
from pycocotools import mask as mask_util

LIBRARIES = ("faster_coco_eval", "pycocotools")
KINDS = ("bbox", "segm")


def peak_gigabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def evaluate_file(path: Path, library: str, results: multiprocessing.Queue) -> None:
    """Evaluate a pickled result; puts a row and the arrays. To be a process's only work."""
    truth, predictions = pickle.loads(path.read_bytes())
    row, arrays = {"what": "evaluate", "library": library}, []
    wall, cpu = time.perf_counter(), time.process_time()
    for kind in KINDS:
        start = time.perf_counter()
        found = average_precision(truth, predictions, kind, library=library)
        arrays += [found.precision, found.recall, found.scores]
        row[f"{kind} s"] = f"{time.perf_counter() - start:.1f}"
    row["wall s"] = f"{time.perf_counter() - wall:.1f}"
    row["cpu s"] = f"{time.process_time() - cpu:.1f}"
    row["peak GB"] = f"{peak_gigabytes():.2f}"
    results.put((row, arrays))


def write_many(path: Path, images: int, results: multiprocessing.Queue) -> None:
    """Keep the predictions of so many images, and write them. To be a process's only work."""
    _, pool = pickle.loads(path.read_bytes())
    start = time.process_time()
    kept = []
    for number in range(images):
        other = pickle.loads(pickle.dumps(pool[number % len(pool)]))  # shares no memory
        kept.append(ImagePredictions(**{**vars(other), "image_id": number}))
    write_predictions(str(path.parent / "predictions.json"), kept, range(1, 10_000))
    row = {"what": "keep and write", "library": "", "cpu s": f"{time.process_time() - start:.1f}"}
    results.put((row | {"images": str(images), "peak GB": f"{peak_gigabytes():.2f}"}, []))


def in_own_process(function, *arguments) -> tuple[dict[str, str], list[np.ndarray]]:
    """What the function puts into the queue that it gets as its last argument."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=function, args=(*arguments, results))
    process.start()
    found = results.get()
    process.join()
    return found


def time_encoding(predictions: ImagePredictions, seconds: float) -> list[dict[str, str]]:
    """Milliseconds for the masks of one image, by the COCO code and by ours."""
    masks = np.stack([mask_util.decode(rle).astype(bool) for rle in predictions.masks()])

    def coco_code() -> list[bytes]:
        fortran = (np.asfortranarray(mask, dtype=np.uint8) for mask in masks)
        return [mask_util.encode(mask)["counts"] for mask in fortran]

    if coco_code() != encode_masks(masks):
        raise SystemExit("error: masks are encoded differently.")
    rows = []
    for name, function in (("pycocotools", coco_code), ("ours", lambda: encode_masks(masks))):
        best = measure(function, "cpu", seconds).best / 1e3
        rows.append({"what": "encode one image", "library": name, "wall s": f"{best / 1e3:.4f}"})
    return rows


def main() -> None:
    """Parses the arguments, generates, measures, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--test-dev", type=int, default=0, help="images to keep and write")
    args = parse_common(parser)
    if args.device == "cuda":
        print("Evaluation runs on the CPU alone: nothing to measure here.")
        return
    if args.shapes:  # a quick run of `make bench`
        args.images = min(args.images, 200)
    facts = environment("cpu")
    print_environment(facts)
    truth, predictions = make_result(args.images, args.classes, args.detections)
    size = {
        "images": str(args.images),
        "classes": str(args.classes),
        "detections": str(args.detections),
    }
    rows, arrays = time_encoding(predictions[0], args.seconds), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.pkl"
        path.write_bytes(pickle.dumps((truth, predictions)))
        del truth, predictions
        for library in LIBRARIES:
            row, found = in_own_process(evaluate_file, path, library)
            rows.append(row)
            arrays.append(found)
            print(f"  {row}", flush=True)
        if args.test_dev:
            rows.append(in_own_process(write_many, path, args.test_dev)[0])
    same = all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
    rows[-1 - bool(args.test_dev)]["same arrays"] = str(same)
    slow, fast = (float(rows[place]["cpu s"]) for place in (3, 2))
    rows[2]["speed-up"] = f"{slow / fast:.1f}"
    columns = ["what", "library", *size, *(f"{kind} s" for kind in KINDS)]
    columns += ["wall s", "cpu s", "peak GB", "speed-up", "same arrays"]
    rows = [{column: (size | row).get(column, "") for column in columns} for row in rows]
    print_table(rows)
    if args.save:
        save("evaluation", rows, facts)
    if not same:
        raise SystemExit("error: the libraries do not give the same arrays.")


if __name__ == "__main__":
    main()
