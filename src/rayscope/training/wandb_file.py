"""The file that W&B keeps of an offline run: a LevelDB log of protobuf records, in blocks of 32 kB."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

BLOCK = 2**15
OPENING = b":W&B"  # and three bytes more
PIECE = struct.Struct("<IHB")  # the head of a piece: checksum, length, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # the kinds: a record, or pieces of one


def records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(record, where it ends) up to one that is cut short.
    Raises ValueError at one that is damaged, or for another file.
    """
    if data[: len(OPENING)] != OPENING:
        raise ValueError("no file of W&B")
    place, record = 7, b""
    while True:
        left = BLOCK - place % BLOCK
        if left < PIECE.size:
            place += left  # padding
        start = place + PIECE.size
        if start > len(data):
            return
        checksum, length, kind = PIECE.unpack_from(data, place)
        piece = data[start : start + length]
        if len(piece) < length:
            return
        if zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"damaged at byte {place}")
        place, record = start + length, piece if kind in (WHOLE, FIRST) else record + piece
        if kind in (WHOLE, LAST):
            yield record, place


def mend(path: Path) -> int:
    """Takes off the record that a kill cut short, at which `wandb sync` would end.
    Says the last step in the file, or 0.
    """
    data, end, step = path.read_bytes(), 0, 0
    try:
        for record, place in records(data):
            step, end = max(step, Record.FromString(record).history.step.num), place
    except (ValueError, DecodeError):  # not ours to mend
        return step
    if 0 < end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
    return step
