"""How a folder here looks to a test."""

from pathlib import Path


def contents(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in sorted(root.rglob("*"))}


def alone(folder: Path) -> bool:
    return [item.name for item in folder.parent.iterdir()] == [folder.name]
