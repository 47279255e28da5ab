#!/usr/bin/env bash
# Pillow 13.0.0, a greyscale PNG of 2 or 4 bits with one transparent grey (a tRNS chunk).
#
# One would guess: convert("RGBA") makes the pixels of that grey transparent, as it does at 8 bits.
# What happens: none is. The pixels are scaled to 8 bits when they are read, and the grey of the chunk is not, so it is
# compared with what no pixel has; where the image has a darker grey of that 8-bit value, the wrong pixels disappear.
# Whoever composites icons or masks before training sees the background as a colour of its own.
#
# Seen on 2026-11-30:
#   8 bits: [255, 0, 255, 255]
#   2 bits: [255, 255, 255, 255]
#   4 bits: [255, 255, 255, 255]
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import zlib

from PIL import Image


def png(bits: int, row: bytes, grey: int) -> bytes:
    """Four pixels in a row: black, dark, light, white; ``grey`` is transparent."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    parts = (b"IHDR", head), (b"tRNS", struct.pack(">H", grey)), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


seen = {}
for bits, row, grey in ((8, bytes([0, 85, 170, 255]), 85), (2, bytes([0b00011011]), 1), (4, bytes([0x05, 0xAF]), 5)):
    image = Image.open(io.BytesIO(png(bits, row, grey))).convert("RGBA")
    seen[bits] = [image.getpixel((x, 0))[3] for x in range(4)]
    print(f"{bits} bits: {seen[bits]}")
assert seen == {8: [255, 0, 255, 255], 2: [255] * 4, 4: [255] * 4}, "this has changed"
PYTHON
