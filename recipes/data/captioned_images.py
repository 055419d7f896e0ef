"""Captioned pictures out of Debian packages, for judges that see (``judge/seeing_model.py``, task source ``captions``).

    python -m recipes.data.captioned_images --out runs/captioned-images
    python -m recipes.data.captioned_images --clip-art --out runs/clip-art
    python -m recipes.data.captioned_images --out DIR --debs FOLDER      # where there is no apt: the .deb files lie there

=============================  =======================================================================================
``tuxpaint-stamps-default``    photographs and drawings, each with a sentence about it (GPL-2: used, not passed on); the
                               category is the first folder: animals, food, symbols, ...
``iso-flags-png-320x240``      flags (public domain), captioned by the names of ``iso-codes`` (LGPL-2.1); category flags
``openclipart-png``            with ``--clip-art``, alone and in a file of its own, so that no style of caption tells the
                               sources apart: drawings (public domain), captioned by the titles and keywords that stand in
                               ``openclipart-svg`` (``clip_art``)
=============================  =======================================================================================

The packages are fetched by ``apt-get download``, which installs nothing and needs no root, and kept in the user's cache.
SVG files, pictures without a caption, and those that ``mrjudge_reward.images`` refuses are left out, and of several with one
caption all but the first. Each picture is put on a white square of ``--side`` pixels. Writes ``captions.jsonl`` and
``images/``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from mrjudge_reward.engines.embedded import cache_dir
from mrjudge_reward.errors import InputError, require
from mrjudge_reward.images import load_picture, opened

from .captions import Captioned, same
from .clip_art import Found, clip_art

STAMPS, FLAGS, NAMES = "tuxpaint-stamps-default", "iso-flags-png-320x240", "iso-codes"
CLIP_ART, TITLES = "openclipart-png", "openclipart-svg"


def debian_package(name: str, debs: str | None = None) -> Path:
    """The .deb file of a package: in a given folder, in the user's cache, or fetched by apt-get into it.

    Raises:
        InputError: if it is not there and cannot be fetched; with what to do.
    """
    folder = Path(debs) if debs is not None else cache_dir() / "data"
    pattern = f"{name}_*.deb"
    if found := sorted(folder.glob(pattern)):
        return found[-1]
    if debs is not None:
        raise InputError(f"there is no {pattern} in {debs}")
    advice = f"get {name} by hand (https://packages.debian.org/{name}) and name its folder by --debs"
    if shutil.which("apt-get") is None:
        raise InputError(f"there is no apt-get here to fetch the Debian package {name}: {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        if found := sorted(folder.glob(pattern)):  # another process may have fetched it meanwhile
            return found[-1]
        print(f"Fetching the Debian package {name} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # so that an interrupted download leaves nothing
            command = ["apt-get", "download", "--quiet", name]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            files = sorted(Path(scratch).glob(pattern))
            if done.returncode != 0 or not files:
                raise InputError(f"apt-get could not fetch {name} ({done.stderr.strip()[-300:]}): {advice}")
            return files[0].replace(folder / files[0].name)


def unpacked(deb: Path, folder: Path) -> Path:
    """The files of a package, put into a folder.

    Raises:
        InputError: if dpkg-deb is missing or refuses the file.
    """
    if shutil.which("dpkg-deb") is None:
        raise InputError("there is no dpkg-deb here to unpack Debian packages; install dpkg")
    done = subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"{deb} cannot be unpacked: {done.stderr.strip()[-300:]}")
    return folder


def stamps(root: Path) -> Iterator[Found]:
    """Pictures beside a text whose first line is the English caption; sorted by path."""
    for file in sorted(root.rglob("*.png")):
        text, path = file.with_suffix(".txt"), file.relative_to(root)
        if text.is_file() and len(path.parts) > 1:
            lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
            caption = " ".join(lines[0].split()) if lines else ""
            if caption:
                yield Found(file, "-".join(path.with_suffix("").parts), caption, path.parts[0])


def flags(root: Path, names: Path) -> Iterator[Found]:
    """Flags of countries, in the order of their codes; those of regions and organisations have no name here."""
    listed = json.loads(names.read_text(encoding="utf-8"))["3166-1"]
    for row in sorted(listed, key=lambda row: str(row["alpha_2"])):
        file = root / f"{row['alpha_2'].lower()}.png"
        if file.is_file():
            yield Found(file, f"flags-{file.stem}", f"The flag of {row.get('common_name', row['name'])}.", "flags")


def squared(file: Path, side: int) -> Any:
    """The picture as a PIL image, whole, on a white square.

    Raises:
        InputError: if it is no picture that can be shown.
    """
    shown = opened(load_picture(str(file)))
    return require("PIL.ImageOps", extra="images").pad(shown, (side, side), color="white")


def write_captions(found: Iterable[Found], folder: Path, side: int) -> list[Captioned]:
    """Write copies of the pictures and the file that names them; what is left out is said."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: dict[str, Captioned] = {}
    refused = doubled = 0
    for one in found:
        if same(one.caption) in rows:
            doubled += 1
            continue
        try:
            picture = squared(one.file, side)
        except InputError as error:
            refused += 1
            print(f"left out: {error}", file=sys.stderr)
            continue
        picture.save(folder / "images" / f"{one.name}.png")
        rows[same(one.caption)] = Captioned(f"images/{one.name}.png", one.caption, one.category)
    lines = (json.dumps(asdict(row), ensure_ascii=False) for row in rows.values())
    (folder / "captions.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(f"left out: {refused} refused, {doubled} with a caption that another picture has", file=sys.stderr)
    return list(rows.values())


def main() -> None:
    """Fetch, unpack, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--debs", help="folder with the .deb files, instead of fetching them")
    parser.add_argument("--side", type=int, default=224, help="pixels of a side")
    parser.add_argument("--no-flags", action="store_true", help="the stamps alone")
    parser.add_argument(
        "--clip-art", action="store_true", help="drawings of Open Clip Art, instead of stamps and flags"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        share = Path(scratch) / "usr" / "share"
        pictured = (CLIP_ART, TITLES) if args.clip_art else (STAMPS,) if args.no_flags else (STAMPS, FLAGS, NAMES)
        for package in pictured:
            unpacked(debian_package(package, args.debs), Path(scratch))
        if args.clip_art:
            found = list(clip_art(share / "openclipart" / "svg", share / "openclipart" / "png"))
        else:
            found = list(stamps(share / "tuxpaint" / "stamps"))
        if not args.clip_art and not args.no_flags:
            found += flags(share / FLAGS, share / "iso-codes" / "json" / "iso_3166-1.json")
        rows = write_captions(found, Path(args.out), args.side)
    counts = Counter(row.category for row in rows)
    print(f"{len(rows)} captioned images: " + ", ".join(f"{name} {count}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main()
