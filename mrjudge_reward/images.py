"""Images on their way to a judge: loaded, checked, made alike, and known by their content.

An image comes as a PIL image, bytes, a path, a ``data:`` URL, a mapping with ``bytes`` or ``path`` (an image column of the
datasets library that was not decoded), or an array or a tensor of uint8: H x W, H x W x C or C x H x W. :func:`load_picture`
makes a :class:`Picture` of it, the same whatever it came as and whichever engine judges:

* PNG, JPEG, WebP, GIF, BMP or TIFF, told by the content; the name of a file says nothing;
* the first frame of an animation or of several pages (a PIL image: the frame it stands at);
* turned upright as its EXIF says, transparency over white, CMYK, palettes, grey and 16 bits as 8-bit RGB (colour profiles
  are not applied);
* no more than ``max_pixels``: a larger one is scaled down, its aspect ratio kept.

What is no such image (missing, empty, truncated, of another format, a single row or column of pixels, more than
``MOST_BYTES`` or, by its header and before anything is decoded, more than ``MOST_PIXELS``) raises an ``InputError`` that
names it; the judge turns that into failed comparisons of its group. Web addresses are not fetched here: a server may do
so, and engines in this process refuse them.

Text *inside* a picture ("choose A") reaches the judge: no guard can disarm what only the model reads.

>>> picture = load_picture("data:image/gif;base64,R0lGODdhAgACAIAAAP8AAP8AACwAAAAAAgACAAACAoRRADs=")
>>> (picture.width, picture.height, picture.mime)
(2, 2, 'image/png')
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import ipaddress
import math
import os
import re
import socket
import stat
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from .credentials import without_credentials
from .errors import InputError, require

MAX_PIXELS = 1280 * 28 * 28
"""Most pixels that a judge gets to see: about a megapixel, 1,280 tokens for Qwen2.5-VL."""

MOST_PIXELS = 64 * 2**20
"""Most pixels that are decoded at all: a larger image would take more than 256 MiB."""

MOST_BYTES = 64 * 2**20
"""Most bytes of an encoded image."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # no others: some of Pillow's readers start programs
_SENT_AS_IT_IS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_ORIENTATION = 0x0112
_WEB = ("http://", "https://")
_NOT_UINT8 = "has values of {}, of which nobody can say which is white; convert it to uint8, 0 to 255"
_FORMS = "a PIL image, bytes, a path or a URL, or an array or tensor of pixels"

_decoding = threading.Lock()  # a PIL image that was opened and not yet decoded must not be by two threads at once


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that can be shown to any judge: upright, opaque RGB, within its bound.

    Attributes:
        key: hash of its size and pixels.
        width, height: in pixels.
        mime: what ``data`` is.
        data: the encoded image: the original where that shows just this, else a PNG.
    """

    key: str
    width: int
    height: int
    mime: str
    data: bytes = field(repr=False, compare=False)


def bare(image: Any) -> Any:
    """An image itself, of a mapping with ``bytes`` or ``path`` what it holds."""
    return image.get("bytes") or image.get("path") if isinstance(image, Mapping) else image


def is_web_address(image: Any) -> bool:
    """Whether it is a URL that only a server may fetch."""
    return isinstance(image, str) and image[:8].lower().startswith(_WEB)


def placed(image: str, folder: Path, allowed: Sequence[str] = ()) -> str:
    """An image that is named in a file which may come from anybody: the path that it stands for, or its address.

    Args:
        image: a path, absolute or relative to the folder; a ``file:``, ``data:`` or web address.
        folder: of the file. Images come from below it, links followed.
        allowed: further folders, and beginnings of web addresses.

    Raises:
        InputError: if it lies elsewhere, or is the address of the machine itself or of its network alone.
    """
    if image.startswith("data:"):
        return image
    if is_web_address(image):
        if not any(is_web_address(one) and image.startswith(one) for one in allowed) and (
            fault := local_address(image)
        ):
            raise InputError(f"{_name(image)} {fault}; if you trust whoever made the file, allow it by its beginning")
        return image
    path = unquote(image[7:]) if image[:7].lower() == "file://" else image
    roots = [folder, *(Path(one) for one in allowed if not is_web_address(one))]
    try:
        found = (folder / path).resolve()
        if any(found.is_relative_to(root.resolve()) for root in roots):
            return str(found)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{_name(image)} is no path: {error}") from error
    raise InputError(
        f"{_name(image)} is not below {folder.resolve()}, where the file is that names it; allow its folder"
    )


def local_address(url: str) -> str:
    """What is wrong with the web address of an image that names this machine, or what its network tells this machine alone
    (169.254.169.254 in a cloud: its credentials), however it is spelled; empty if nothing is. Names are not looked up."""
    if re.search(r"[\x00-\x20\x7f\\\\]", url):
        return "has a space, a backslash or a line break in its address"
    try:
        host = urlsplit(url).hostname or ""
    except ValueError as error:
        return f"is at no address: {error}"
    host = unicodedata.normalize("NFKC", unquote(host)).replace("\u3002", ".").lower().rstrip(".")
    if not host or host in _LOCAL_NAMES or host.endswith((".localhost", ".local", ".internal")):
        return f"is at {host or 'no host'}, which is for this machine or its network alone"
    address = _ip(host)
    if address is None:
        return ""
    own = address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
    return f"is at {address}, which is for this machine or its network alone" if own or address in _METADATA else ""


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is, in any of the spellings that are taken: ``0xA9FEA9FE``, ``[::ffff:169.254.169.254]``."""
    with suppress(OSError, ValueError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    with suppress(ValueError):
        six = ipaddress.IPv6Address(host.partition("%")[0])
        teredo = six.teredo[1] if six.teredo else None
        nat = ipaddress.IPv4Address(six.packed[-4:]) if six in _NAT64 or six.packed[:12] == bytes(12) else None
        inner = six.ipv4_mapped or six.sixtofour or teredo or (nat if nat and int(six) > 1 else None)
        return inner or six
    return None


_LOCAL_NAMES = frozenset({"localhost", "metadata", "instance-data", "ip6-localhost"})
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
"""Where clouds tell a machine its credentials, beside 169.254.169.254."""


def load_picture(image: Any, max_pixels: int = MAX_PIXELS) -> Picture:
    """Load, check and normalise an image; a picture within the bound stays what it is.

    Args:
        image: see the module; a web address is refused.
        max_pixels: most pixels of the result.

    Raises:
        InputError: if it is no image that can be shown; with its name and what is wrong with it.
        MissingPackageError: if Pillow is missing.
    """
    return Album(max_pixels, kept=0).picture(image)


def opened(picture: Picture) -> Any:
    """The picture as a PIL image in RGB."""
    return _opened(picture.data).convert("RGB")


def data_url(picture: Picture) -> str:
    """The picture as a ``data:`` URL."""
    return f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode()}"


def estimated_tokens(width: int, height: int) -> int:
    """About as many tokens as a judge makes of an image, where it does not tell: one for 28 x 28 pixels, and at least 256.

    Qwen2.5-VL makes that many (Qwen3-VL somewhat fewer, LLaVA 1.5 always 576, models that cut an image into tiles more).
    """
    return max(256, math.ceil(width / 28) * math.ceil(height / 28)) + 2


def fingerprint(image: Any) -> str:
    """Hash of what an image is now: of a file its content, of a web address the address.

    Raises:
        OSError: if there is a file and it cannot be read.
    """
    if isinstance(image, Picture):
        return image.key
    image = bare(image)
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        path = path.removeprefix("file://") if isinstance(path, str) else path
        try:  # a (data) URL may be too long for a file name
            found = os.path.isfile(path)
        except ValueError:
            found = False
        if found:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return given_as(image)


def given_as(image: Any) -> str:
    """Hash of an image as it was given: of a path its name, so that nothing is opened.

    Raises:
        InputError: if it is nothing that can hold an image.
    """
    if isinstance(image, Picture):
        return image.key
    image = bare(image)
    if isinstance(image, str | os.PathLike):
        content = os.fsencode(image) if isinstance(image, os.PathLike) else image.encode(errors="surrogatepass")
    elif isinstance(image, bytes | bytearray):
        content = bytes(image)
    elif hasattr(image, "tobytes") and hasattr(image, "mode"):  # PIL
        palette = image.getpalette() if getattr(image, "mode", "") == "P" else None
        content = f"{image.mode}{image.size}{palette}".encode() + image.tobytes()
    elif (array := _array(image)) is not None:
        content = f"{array.dtype}{array.shape}".encode() + array.tobytes()
    else:
        raise InputError(f"an image must be {_FORMS}; got {type(image).__name__}")
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def known_as(image: Any) -> str:
    """As ``given_as``, and of what cannot be read the hash of its type: it fails by its name where it is loaded."""
    try:
        return given_as(image)
    except Exception:  # noqa: BLE001  decoders raise what they like
        return hashlib.blake2b(f"unread {type(image).__name__}".encode(), digest_size=16).hexdigest()


class Album:
    """Loads images and keeps the latest by content, so that what several groups show is decoded once. For any threads.

    Args:
        max_pixels: see ``load_picture``.
        kept: how many pictures.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS, kept: int = 64) -> None:
        self.max_pixels, self.kept = max_pixels, kept
        self._pictures: OrderedDict[bytes, Picture] = OrderedDict()
        self._lock = threading.Lock()

    def picture(self, image: Any) -> Picture:
        """The picture of an image.

        Raises:
            InputError: see ``load_picture``.
            MissingPackageError: if Pillow is missing.
        """
        require("PIL", extra="images")
        image = bare(image)
        if isinstance(image, Picture):
            if image.width * image.height <= self.max_pixels:
                return image
            image = image.data
        name = _name(image)
        if is_web_address(image):
            raise InputError(f"{name} is a web address, which is not fetched here; give a path, bytes or a data URL")
        try:
            image = _frame(array) if (array := _array(image)) is not None else image
            return _normalised(image, None, self.max_pixels) if _is_pil(image) else self._of(_bytes_of(image))
        except InputError as error:
            raise InputError(f"{name} {error}") from None
        except Exception as error:  # decoders raise what they like
            raise InputError(f"{name} cannot be decoded: {type(error).__name__}: {error!s:.200}") from error

    def _of(self, data: bytes) -> Picture:
        key = hashlib.blake2b(data, digest_size=16).digest()
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        picture = _normalised(_opened(data), data, self.max_pixels)
        with self._lock:
            self._pictures[key] = picture
            while len(self._pictures) > self.kept:
                self._pictures.popitem(last=False)
        return picture


def _name(image: Any) -> str:
    if isinstance(image, str) and image.startswith("data:"):
        return f"the image in a data URL of {len(image)} characters"
    if isinstance(image, str | os.PathLike):
        return f"the image {without_credentials(repr(os.fspath(image))):.300}"
    if isinstance(image, bytes | bytearray):
        return f"the image of {len(image)} bytes"
    if isinstance(image, Picture) or _is_pil(image):
        return f"the image of {image.width} x {image.height} pixels"
    return f"the image given as {type(image).__name__}"


def _is_pil(image: Any) -> bool:
    return isinstance(image, require("PIL.Image", extra="images").Image)


def _array(image: Any) -> Any:
    """An array, of a tensor one of its values; None of all else."""
    if hasattr(image, "detach"):
        try:
            image = image.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:
            raise InputError(_NOT_UINT8.format(image.dtype)) from error
    return image if hasattr(image, "tobytes") and hasattr(image, "shape") else None


def _frame(array: Any) -> Any:
    """The PIL image of an array of pixels; channels stand first or last, first where both could be, as for processors."""
    if str(array.dtype) != "uint8":
        raise InputError(_NOT_UINT8.format(array.dtype))
    shape = array.shape
    if len(shape) == 3 and (shape[0] in (1, 3) or (shape[0] == 4 and shape[2] not in (1, 3, 4))):
        array = array.transpose(1, 2, 0)
    if len(shape) == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise InputError(f"has the shape {shape}; H x W, H x W x C or C x H x W are shown, C of 1, 3 or 4")
    return require("PIL.Image", extra="images").fromarray(array)


def _bytes_of(image: Any) -> bytes:
    """The encoded image; what an InputError says here follows the image's name."""
    if isinstance(image, bytes | bytearray):
        data = bytes(image)
    elif isinstance(image, str) and image.startswith("data:"):
        data = _of_data_url(image)
    elif isinstance(image, str | os.PathLike):
        data = _of_file(os.fspath(image))
    else:
        raise InputError(f"is none: give {_FORMS}")
    if not data:
        raise InputError("is empty: it has no bytes")
    if len(data) > MOST_BYTES:
        raise InputError(f"is too large: {len(data):,} bytes, {MOST_BYTES:,} are read")
    return data


def _of_data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise InputError("has no comma, so it is no data URL")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"is no base64: {error}") from error


def _of_file(path: Any) -> bytes:
    path = path.removeprefix("file://") if isinstance(path, str) else path
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # a pipe or a device would be read for ever
            raise InputError("is no file")
        if found.st_size > MOST_BYTES:
            raise InputError(f"is too large: {found.st_size:,} bytes, {MOST_BYTES:,} are read")
        with open(path, "rb") as file:
            return file.read(found.st_size)  # not without end, and not into a buffer of the most that there may be
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error!s:.200}") from error


def _opened(data: bytes) -> Any:
    """The PIL image, its header read and nothing decoded.

    ``PIL.Image.open`` says the same with a warning about large images, which cannot be turned off for one thread alone.
    """
    pil = require("PIL.Image", extra="images")
    pil.init()
    for name in _FORMATS:
        reader, accepts = pil.OPEN.get(name, (None, None))
        if reader is not None and (accepts is None or accepts(data[:16]) is True):
            return reader(io.BytesIO(data), "")
    raise InputError(f"is no image that is known here ({', '.join(_FORMATS)})")


def _normalised(image: Any, data: bytes | None, max_pixels: int) -> Picture:
    """Args: the PIL image, and the bytes it was opened from, if any."""
    pil = require("PIL.Image", extra="images")
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise InputError(f"is too large: {width:,} x {height:,} pixels, {MOST_PIXELS:,} are decoded")
    if min(width, height) < 2:
        raise InputError(f"shows nothing: it has {width} x {height} pixels")
    with _decoding:
        image.load()
    turned = _turned(image)
    upright = require("PIL.ImageOps", extra="images").exif_transpose(image) if turned else image
    shown = _rgb(upright)
    width, height = shown.size
    scale = math.sqrt(max_pixels / (width * height))
    if scale < 1:
        size = max(2, int(width * scale)), max(2, int(height * scale))
        shown = shown.resize(size, pil.Resampling.LANCZOS, reducing_gap=3.0)
    pixels = hashlib.blake2b(f"{shown.size}".encode() + shown.tobytes(), digest_size=16).hexdigest()
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info and not turned and scale >= 1
    mime = _SENT_AS_IT_IS.get(image.format or "", "") if plain and getattr(image, "n_frames", 1) == 1 else ""
    if data is None or not mime or len(data) > 4 * width * height + 65536:  # the rest of that is no picture
        buffer = io.BytesIO()
        shown.save(buffer, format="PNG", compress_level=1)
        data, mime = buffer.getvalue(), "image/png"
    return Picture(pixels, shown.width, shown.height, mime, data)


def _turned(image: Any) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # noqa: BLE001  what cannot be read (a warning, where warnings are no errors) turns nothing
        return False


def _rgb(image: Any) -> Any:
    pil = require("PIL.Image", extra="images")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        own = image.convert("RGBA")
        paper = pil.new("RGBA", own.size, "white")
        paper.alpha_composite(own)
        return paper.convert("RGB")
    if image.mode.startswith("I;16"):  # to RGB directly, all above 255 would be white
        return image.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise InputError(
            f"has pixels of mode {image.mode}, of which nobody can say which is white; convert it to 8 bits"
        )
    return image.convert("RGB")
