"""Tensors by name out of files from anywhere: safetensors, torch's, folders, checkpoints of ours; never by a pickle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from infra.errors import UsageError
from infra.storage import Storage

IN_FOLDERS = ("open_clip_model.safetensors", "model.safetensors")  # open_clip's and transformers' exports
STATE_DICTS = ("state_dict", "model")  # keys that training code puts the tensors under
SHOWN = 5


def read_tensors(url: str) -> Mapping[str, Tensor]:
    """Of a .safetensors file; a .pt, .pth or .bin file that holds tensors only; a folder with one of `IN_FOLDERS`; a
    checkpoint of ours. Raises UsageError.
    """
    folder = Storage(url)
    if folder.exists("checkpoint.json"):
        from training.checkpoint import Checkpoint

        return Checkpoint.open(url).weights()
    for name in IN_FOLDERS:
        if folder.exists(name):
            return read_tensors(f"{url}/{name}")
    storage, name = Storage.of_file(url)
    if not storage.exists(name):
        raise UsageError(f"{url}: there is no such file; give a .safetensors file, or a checkpoint of ours")
    return _read_safetensors(storage, name) if name.endswith(".safetensors") else _read_torch(storage, name)


def _read_safetensors(storage: Storage, name: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        # A local file is mapped, never read twice.
        return load_file(storage.path(name)) if storage.is_local else load(storage.read(name))
    except SafetensorError as error:
        raise UsageError(f"{storage.file_url(name)}: not a safetensors file: {error}") from None


def _read_torch(storage: Storage, name: str) -> dict[str, Tensor]:
    """A file of torch.save. torch's restricted reader makes tensors and plain containers, and calls nothing else."""
    import torch

    url = storage.file_url(name)
    try:
        with storage.open(name) as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - foreign bytes reach every line of the reader
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{url}: not read, as more than tensors may lie in it ({reason}). Where you trust it, convert it once: "
            "safetensors.torch.save_file(torch.load(path, weights_only=False)['state_dict'], 'weights.safetensors')"
        ) from None
    named = found if isinstance(found, dict) else {}
    weights = next((named[key] for key in STATE_DICTS if isinstance(named.get(key), dict)), named)
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(f"{url}: holds no tensors by name, nor a state_dict of them")
    return tensors


def refuse_misfits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, model: str) -> None:
    """Every wanted name is there, of its shape, and no other. Raises UsageError that says what is not so."""
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    others = [
        f"{name} {tuple(found[name].shape)}, not {shape}" for name, shape in shapes.items()
        if name in found and tuple(found[name].shape) != shape
    ]  # fmt: skip
    faults = [
        *_listed("missing", [name for name in wanted if name not in found]),
        *_listed("not of this architecture", [name for name in found if name not in wanted]),
        *_listed("of another shape", others),
    ]
    if faults:
        raise UsageError(f"{source}: not the weights of {model}; {'; '.join(faults)}")


def _listed(kind: str, names: Iterable[str]) -> list[str]:
    told = list(names)
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return [f"{len(told)} {kind}: {', '.join(told[:SHOWN])}{more}"] if told else []
