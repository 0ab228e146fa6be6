"""``psis_d2://NAME`` and ``hf://ORG/REPO/FILE`` wherever Detectron2 takes a path.

Importing this module registers both with Detectron2's ``PathManager``; :mod:`psis_d2.modeling`
imports it, so that every command and Detectron2's own ``DefaultPredictor`` know them.
"""

from collections.abc import Callable
from pathlib import Path

from psis_d2.errors import UserError
from psis_d2.model_zoo.catalog import PREFIX
from psis_d2.model_zoo.checkpoints import local_path
from psis_d2.model_zoo.download import Failed, fetch_from_hub
from psis_d2.model_zoo.weights import as_pth

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler


class AddressHandler(PathHandler):
    """Turns addresses into local files, to be read only.

    Args:
        prefix: what the addresses begin with.
        resolve: gives the file of an address.
    """

    def __init__(self, prefix: str, resolve: Callable[[str], Path]):
        super().__init__()
        self.prefix = prefix
        self.resolve = resolve

    def _get_supported_prefixes(self) -> list[str]:
        return [self.prefix]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return str(self.resolve(path))

    def _isfile(self, path: str, **kwargs) -> bool:
        return True  # what is wrong is said when it is used

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        if "r" not in mode:
            raise UserError(f"{path} can be read only; write to a local file.")
        return open(self._get_local_path(path), mode)


def _from_zoo(path: str) -> Path:
    return as_pth(local_path(path))


def _from_hub(path: str) -> Path:
    try:
        return as_pth(fetch_from_hub(path))
    except Failed as error:
        raise UserError(
            f"{path} cannot be downloaded ({error}); check the address and the network."
        ) from error


PathManager.register_handler(AddressHandler(PREFIX, _from_zoo))
PathManager.register_handler(AddressHandler("hf://", _from_hub))
