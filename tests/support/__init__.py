"""What several tests share. ``ROOT`` is the clone."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
