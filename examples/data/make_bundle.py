#!/usr/bin/env python3
"""Makes the bundled part of Fashion-MNIST: the first TRAIN training samples and all test samples, as gzipped IDX files.

    python3 make_bundle.py [SOURCE [TARGET]]

SOURCE holds the four original .gz files (Debian: apt-get install dataset-fashion-mnist). The output depends on the
source and on zlib's version only: no time and no name is written into the gzip headers.
"""
import gzip
import io
import pathlib
import struct
import sys

TRAIN = 10_000
IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801


def cut(raw: bytes, keep: int | None) -> bytes:
    """The first `keep` items (None: all) of an IDX file of bytes, with the count in its header made to fit."""
    magic, count = struct.unpack_from(">II", raw)
    if magic not in (IMAGES_MAGIC, LABELS_MAGIC):
        raise ValueError(f"not an IDX file of images or labels: magic {magic:#x}")
    header = 16 if magic == IMAGES_MAGIC else 8
    height, width = struct.unpack_from(">II", raw, 8) if magic == IMAGES_MAGIC else (1, 1)
    if len(raw) != header + count * height * width:
        raise ValueError(f"{len(raw)} bytes do not fit the header: {count} items of {height}x{width}")
    keep = count if keep is None else min(keep, count)
    return struct.pack(">II", magic, keep) + raw[8 : header + keep * height * width]


def pack(raw: bytes) -> bytes:
    """`raw` gzipped as small as zlib can, without time or name."""
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as file:
        file.write(raw)
    return out.getvalue()


def main() -> None:
    source = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else pathlib.Path(__file__).parent / "fashion-mnist"
    target.mkdir(parents=True, exist_ok=True)
    for stem, keep in [("train", TRAIN), ("t10k", None)]:
        for name in [f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz"]:
            packed = pack(cut(gzip.decompress((source / name).read_bytes()), keep))
            (target / name).write_bytes(packed)
            print(f"{len(packed):>9}  {target / name}", file=sys.stderr)


if __name__ == "__main__":
    main()
