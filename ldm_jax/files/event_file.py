"""Event files of TensorBoard, with numbers in them and nothing else.

A file is a row of TFRecords (tensorflow.org/tutorials/load_data/tfrecord):

(1) length (uint64), checksum of the length, bytes, checksum of the bytes; all little-endian
(2) checksum(x) = rotate(crc32c(x), right 15 bits) + 0xa282ead8, modulo 2^32

whose bytes are an `Event` of tensorboard/compat/proto/event.proto, in the encoding of protocol buffers.
"""

import functools
import struct
import time
from pathlib import Path


class EventFile:
    """A new event file, open for writing."""

    def __init__(self, folder: Path) -> None:
        """Begin a file in a folder that exists.

        Raises:
            OSError: it cannot be written.
        """
        self._file = (folder / f"events.out.tfevents.{time.time():.6f}").open("xb")
        self._write(_bytes(3, b"brain.Event:2"))

    def write_start(self, step: int) -> None:
        """Say that what earlier files tell of this step and those behind it is to be forgotten."""
        self._write(_integer(2, step) + _bytes(7, _integer(1, 1)))

    def write_value(self, step: int, name: str, value: float) -> None:
        """Write a number of a step."""
        number = _bytes(1, name.encode()) + struct.pack("<Bf", _tag(2, 5), value)
        self._write(_integer(2, step) + _bytes(5, _bytes(1, number)))

    def flush(self) -> None:
        """Have everything in the file."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()

    def _write(self, fields: bytes) -> None:
        """An event of now, as a record (1)."""
        event = struct.pack("<Bd", _tag(1, 1), time.time()) + fields
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))


def _tag(number: int, kind: int) -> int:
    """What stands before a field: its number, and how its value is written."""
    return number << 3 | kind


def _integer(number: int, value: int) -> bytes:
    return bytes([_tag(number, 0)]) + _varint(value)


def _bytes(number: int, value: bytes) -> bytes:
    return bytes([_tag(number, 2)]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """A number that is not negative, in groups of seven bits, the lowest first."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _checksum(content: bytes) -> bytes:
    """(2)."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@functools.cache
def _table() -> tuple[int, ...]:
    """CRC-32C of each byte: the polynomial of Castagnoli, bits reversed."""

    def of(byte: int) -> int:
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        return byte

    return tuple(map(of, range(256)))
