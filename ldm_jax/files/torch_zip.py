"""The table of contents of a zip archive as `torch.save` writes it: where each entry lies, uncompressed.

PyTorch stores its entries as they are, so that a tensor is a range of bytes of the file. Anything else that the zip
format allows (compression, encryption, two entries of one name) has no place in a checkpoint and is refused.
"""

import struct
import zipfile
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ldm_jax.errors import UserError
from ldm_jax.files.tensor_file import damaged

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A range of bytes of the file."""

    start: int
    size: int


def read_entries(path: Path, file: BufferedReader) -> dict[str, Entry]:
    """Entries of an open zip archive by name.

    Raises:
        UserError: the archive is cut short or contradicts itself, or an entry is compressed, encrypted or there twice.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError) as error:
        raise damaged(path, f"the end of the zip archive is missing or wrong ({error})") from error
    size = file.seek(0, 2)
    entries: dict[str, Entry] = {}
    for member in members:
        if member.filename in entries:
            raise damaged(path, f"the zip entry {member.filename} is there twice")
        entries[member.filename] = _locate(path, file, member, size)
    return entries


def _locate(path: Path, file: BufferedReader, member: zipfile.ZipInfo, size: int) -> Entry:
    name = member.filename
    if member.flag_bits & _ENCRYPTED:
        raise UserError(f"the zip entry {name} of {path} is encrypted; decrypt the archive first")
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise UserError(
            f"the zip entry {name} of {path} is compressed, and torch.save compresses nothing; "
            "unpack the archive and look what it is"
        )
    file.seek(max(member.header_offset, 0))
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise damaged(path, f"the zip entry {name} does not begin where the archive says")
    *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    if file.read(name_length) != member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437"):
        raise damaged(path, f"the zip entry {name} has another name where it begins")
    start = file.tell() + extra_length
    if start + member.file_size > size:
        raise damaged(path, f"the zip entry {name} reaches {start + member.file_size - size} bytes beyond the file")
    return Entry(start=start, size=member.file_size)
