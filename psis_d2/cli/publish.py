"""Make a file of a trained model that others use by its name.

    psis-d2 publish --config-file shapeprop_R50 --name shapeprop_R50 --license Apache-2.0 \\
        --output published MODEL.WEIGHTS output/shapeprop_R50/model_final.pth
    psis-d2 publish ... --safetensors --push ORG/REPO MODEL.WEIGHTS ...

Writes NAME_<first digits of its SHA-256>.pth, which holds what the model predicts with (no teacher,
no optimizer) and says by itself what it is: config, class names, split, metrics, versions, license.
Beside it, a card NAME.md and the row of a zoo, zoo.json. PSIS_D2_ZOO=published/zoo.json then makes
the model known as psis_d2://NAME.
"""

import argparse

from psis_d2.engine.publish import publish
from psis_d2.engine.setup import add_data_arguments, build_config
from psis_d2.model_zoo import config_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, what is said of it, and where it goes."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the training")
    parser.add_argument("--name", required=True, help="what stands behind psis_d2://")
    parser.add_argument("--license", required=True, help="of the weights, such as Apache-2.0")
    parser.add_argument("--note", default="", help="what else to know, such as terms of the data")
    parser.add_argument("--output", default="published", metavar="FOLDER", help="where to write")
    parser.add_argument("--data", default="", help="what it was trained on; default: the config's")
    parser.add_argument(
        "--results", metavar="FILE", help="results.json; default: the one beside the checkpoint"
    )
    parser.add_argument("--command", default="", help="what measured them")
    parser.add_argument("--commit", default="", help="that trained it; default: the checkout's")
    parser.add_argument("--base-url", default="", metavar="URL", help="where the file will be")
    parser.add_argument("--zoo", metavar="FILE", help="list to add to; default: OUTPUT/zoo.json")
    parser.add_argument("--safetensors", action="store_true", help="instead of .pth")
    parser.add_argument("--push", metavar="ORG/REPO", help="upload to the Hugging Face hub, too")
    add_data_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., with MODEL.WEIGHTS")


def run(args: argparse.Namespace) -> None:
    """Write, say where."""
    args.num_gpus = 0
    config = args.config_file.removesuffix(".yaml").removeprefix("configs/")
    done = publish(
        build_config(args),
        args.name,
        license=args.license,
        output=args.output,
        config=config if config in config_names() else "",
        suffix=".safetensors" if args.safetensors else ".pth",
        data=args.data,
        results=args.results,
        command=args.command,
        commit=args.commit,
        note=args.note,
        base_url=args.base_url,
        zoo=args.zoo,
        push=args.push,
    )
    print(f"{done.file} ({done.model.size / 1e6:.1f} MB), card {done.card}, row in {done.zoo}")
    print(f"Use it: PSIS_D2_ZOO={done.zoo} and MODEL.WEIGHTS psis_d2://{done.model.name}")
