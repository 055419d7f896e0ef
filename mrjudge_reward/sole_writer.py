"""One writer of a file at a time, among all processes of this machine. Whoever dies gives the file back.

The lock is the kernel's own (``flock``) on the file itself, so nothing is left beside it. Where there is none, on Windows
and some network file systems, nobody is kept out.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from .errors import InputError


class SoleWriter:
    """Holds a file until it is closed, collected, or the process ends. The file is made if it is not there.

    Args:
        path: of the file.

    Raises:
        InputError: if somebody else holds it, in this process or another; it says who.
        OSError: if it cannot be opened.
    """

    _fd = -1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(path)
        except BaseException:
            self.close()
            raise

    def _lock(self, path: str | os.PathLike[str]) -> None:
        if os.name != "posix":
            return
        import fcntl

        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{os.fspath(path)} is being written by {self._holder()}; wait for it to end, or name another file"
            ) from None
        except OSError:
            return  # this file system has no locks

    def _holder(self) -> str:
        inode = str(os.fstat(self._fd).st_ino)
        with suppress(OSError, ValueError, IndexError):
            for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
                words = line.split()
                if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                    name = Path(f"/proc/{words[4]}/comm").read_text(encoding="utf-8").strip()
                    return f"process {words[4]} ({name})"
        return "another process"

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Whether the file that is held is the one of that name, and not one that was removed since."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._fd))
        except OSError:
            return False

    def close(self) -> None:
        """Give the file back; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()
