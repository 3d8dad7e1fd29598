"""The channel: zmq PUSH in every rank, one zmq PULL in the sidecar, over a unix socket.

Guarantees: `Sender.send` never blocks and never raises for want of a receiver (it counts);
closing either end never waits longer than it is told; at most `SEND_QUEUE` frames wait in a
sender, and a restarted receiver gets fresh frames only (IMMEDIATE). A second receiver is refused
rather than allowed to steal the path, which zmq alone would let it do silently.
"""

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import zmq

from sidecar.errors import ChannelError
from sidecar.wire.frame import Body, Frame, Header, Source, pack

SEND_QUEUE: Final = 64
RECEIVE_QUEUE: Final = 64
# libzmq closes the connection of a peer that sends more; `frame.MAX_BYTES` is the counted limit.
# Times the queue, this bounds what a hostile peer can make the receiver hold.
TRANSPORT_MAX_BYTES: Final = 2 << 20
_FOLDER_MODE: Final = 0o770
_MAX_PATH: Final = 107  # sun_path of a unix socket address, less its terminating zero


class Sender:
    """Stamps bodies with headers and hands them over, or counts them as dropped.

    Not thread-safe: one thread owns a sender, and must be the one that first sends.
    """

    def __init__(
        self,
        path: Path,
        source: Source,
        key: bytes | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.source = source
        self.boot = secrets.token_hex(8)
        self.num_sent = 0
        self.num_dropped = 0
        self._path = path
        self._key = key
        self._clock_ns = clock_ns
        self._socket: zmq.Socket[bytes] | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def open(self) -> None:
        """Begin to connect, so that the first frame finds a receiver that is there."""
        self._connected()

    def send(self, body: Body, step: int = 0) -> bool:
        """Hand `body` over without waiting; False when it was dropped, and counted."""
        self.num_sent += 1
        header = Header(
            self.boot, self.source, self.num_sent, self._clock_ns(), step, self.num_dropped
        )
        socket = self._connected()
        if not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            self.num_dropped += 1  # nobody takes it: not worth packing
            return False
        try:
            socket.send(pack(Frame(header, body), self._key), zmq.NOBLOCK)
        except zmq.Again:
            self.num_dropped += 1
            return False
        return True

    def close(self, linger_seconds: float = 0.0) -> None:
        """Release the socket; what is queued has `linger_seconds` to reach its receiver."""
        if self._socket is not None:
            self._socket.close(linger=int(linger_seconds * 1000))
            self._socket = None
        if self._context is not None:
            self._context.term()
            self._context = None

    def _connected(self) -> "zmq.Socket[bytes]":
        # Made on first use: a zmq context does not survive a fork.
        if self._socket is None:
            check_folder(self._path.parent)
            self._context = zmq.Context()
            self._socket = self._context.socket(zmq.PUSH)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.IMMEDIATE, 1)
            self._socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
            self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
            self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 250)
            self._socket.connect(f"ipc://{self._path}")
        return self._socket


class Receiver:
    """The one reader of the socket; raises ChannelError when it cannot own the path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = _own(path)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE)
        self._socket.setsockopt(zmq.MAXMSGSIZE, TRANSPORT_MAX_BYTES)
        try:
            self._bind()
        except zmq.ZMQError as error:
            self.close()
            raise ChannelError(f"cannot bind {path}: {error}; set SIDECAR_SOCKET") from error

    def receive(self, timeout_seconds: float) -> bytes | None:
        """The next message, or None when none came in time."""
        try:  # under load there is one already, and a poll costs more than decoding it
            return self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            is_there = self._socket.poll(int(timeout_seconds * 1000))
        return self._socket.recv() if is_there else None

    def close(self) -> None:
        """Release the socket and the path, at once."""
        self._socket.close(linger=0)
        self._context.term()
        self._path.unlink(missing_ok=True)
        os.close(self._lock)

    def _bind(self) -> None:
        # zmq creates the socket file under the umask: owner and group may write, others not.
        before = os.umask(0o007)
        try:
            self._socket.bind(f"ipc://{self._path}")
        finally:
            os.umask(before)


def check_folder(folder: Path) -> None:
    """Raise ChannelError when somebody else could have laid `folder` in our way.

    In a place where everybody may create files (`/tmp`), the folder must be this user's alone.
    """
    if not folder.exists() or not folder.parent.stat().st_mode & stat.S_IWOTH:
        return
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_ours or found.st_mode & stat.S_IWOTH:
        raise ChannelError(
            f"{folder} is not a folder of this user alone; remove it, or set SIDECAR_SOCKET"
        )


def _own(path: Path) -> int:
    """Take the lock beside `path`; the open descriptor holds it until closed."""
    if len(os.fsencode(path)) > _MAX_PATH:
        raise ChannelError(f"{path} is longer than {_MAX_PATH} bytes; set a shorter SIDECAR_SOCKET")
    try:
        path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        check_folder(path.parent)
        if path.is_symlink():
            raise ChannelError(f"{path} is a symbolic link; remove it, a socket goes there")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(f"{path}.lock", flags, 0o660)
    except OSError as error:
        raise ChannelError(
            f"cannot use {path}: {error}; set SIDECAR_SOCKET to a path this user can write"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ChannelError(
            f"{path} is owned by another sidecar; stop it, or set another SIDECAR_SOCKET"
        ) from error
    return lock
