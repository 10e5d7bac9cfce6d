"""Names and directories of trained models. Looking them up imports no heavy package and downloads nothing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

HUB_IDS = ("google/ddpm-cifar10-32", "google/ddpm-ema-celebahq-256", "google/ddpm-celebahq-256", "google/ddpm-bedroom-256")
"""Models of the Hugging Face hub that `list models` shows; other hub ids work in the same way."""


def packaged_checkpoints() -> dict[str, Path]:
    """Return the directories of the checkpoints inside the package, by model name: `PRESET:trained`."""
    root = Path(str(files("benchmark"))) / "checkpoints"
    return {f"{path.name}:trained": path for path in sorted(root.iterdir()) if path.is_dir()}


def cached_directory(hub_id: str) -> Path | None:
    """Return the directory of the local copy of a Hugging Face hub model, or None if there is no copy."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
