"""Observes when requests reach a server on loopback: a packet socket, with the kernel's time stamps.

The time that a server itself records for a request is late by the delay of its event loop: some ms under load. A packet
socket needs root (CAP_NET_RAW) and Linux; otherwise there is no witness, and the server's time is used.
"""

from __future__ import annotations

import bisect
import ctypes
import socket
import struct
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ETH_P_IP = 0x0800
# From <asm-generic/socket.h>; Python's socket module has neither.
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS = 26, 35
_TIMESPEC = struct.Struct("@ll")
_BUFFER = 8 * 2**20
_POLL_S = 0.2
_HEAD = 64


class Witness:
    """When data for one port arrived, by the client's port, on the monotonic clock that all processes share."""

    def __init__(self) -> None:
        self._arrived: dict[int, list[float]] = defaultdict(list)

    def saw(self, port: int, at: float) -> None:
        """Record data from a client's port."""
        self._arrived[port].append(at)

    def arrived(self, port: int, by: float) -> float | None:
        """When the last data arrived from a client's port up to a monotonic time; None if there was none."""
        times = self._arrived.get(port, [])
        at = bisect.bisect_right(times, by)
        return times[at - 1] if at else None


@contextmanager
def witness(port: int) -> Iterator[Witness | None]:
    """Watch the data that clients send to a port on loopback. Yields None if this process lacks the permission."""
    try:
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
    except (AttributeError, PermissionError):
        yield None
        return
    with packets:
        _only_data_to(packets, port)
        packets.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        packets.settimeout(_POLL_S)
        packets.bind(("lo", _ETH_P_IP))
        seen, over = Witness(), threading.Event()
        thread = threading.Thread(target=_watch, args=(packets, seen, over))
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()


def _watch(packets: socket.socket, seen: Witness, over: threading.Event) -> None:
    offset = time.time() - time.monotonic()
    while not over.is_set():
        try:
            data, ancillary, _, address = packets.recvmsg(_HEAD, 64)
        except TimeoutError:
            continue
        if address[2] == socket.PACKET_OUTGOING:  # on loopback, each packet is seen twice
            continue
        seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2][: _TIMESPEC.size])
        ip_header = 4 * (data[0] & 0xF)
        (port,) = struct.unpack_from("!H", data, ip_header)
        seen.saw(port, seconds + nanoseconds / 1e9 - offset)


def _only_data_to(packets: socket.socket, port: int) -> None:
    """Attach a classic BPF program that drops everything but TCP segments with data for a port.

    The program sees a packet from its IP header on. Instructions are (code, jump if true, jump if false, operand), as
    in <linux/filter.h>.
    """
    program = [
        (0x30, 0, 0, 9),  # A = protocol
        (0x15, 0, 11, 6),  # TCP?
        (0xB1, 0, 0, 0),  # X = length of the IP header
        (0x48, 0, 0, 2),  # A = destination port
        (0x15, 0, 8, port),
        (0x50, 0, 0, 12),  # A = length of the TCP header, in the upper four bits
        (0x74, 0, 0, 2),
        (0x54, 0, 0, 0x3C),
        (0x0C, 0, 0, 0),  # A += X
        (0x07, 0, 0, 0),  # X = length of both headers
        (0x28, 0, 0, 2),  # A = length of the packet
        (0x2D, 0, 1, 0),  # longer than its headers?
        (0x06, 0, 0, _HEAD),  # accept
        (0x06, 0, 0, 0),  # drop
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    # A struct sock_fprog, which the kernel copies.
    packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code)))
