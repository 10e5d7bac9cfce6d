"""Trained models that have a name, and where they lie; finding them imports nothing heavy and downloads nothing."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

HUB_IDS = ("google/ddpm-cifar10-32", "google/ddpm-ema-celebahq-256", "google/ddpm-celebahq-256", "google/ddpm-bedroom-256")
"""Models of the Hugging Face hub that `list models` mentions; others are read alike."""


def shipped() -> dict[str, Path]:
    """The directory of each checkpoint inside the package, by its name as a model: `PRESET:trained`."""
    root = Path(str(files("benchmark"))) / "checkpoints"
    return {f"{path.name}:trained": path for path in sorted(root.iterdir()) if path.is_dir()}


def cached(hub_id: str) -> Path | None:
    """The local copy of a model of the Hugging Face hub, None where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
