"""A process that encodes until it is killed, and says when its first file is there: python token_writer.py FOLDER [RANK WORLD]"""

import sys
from pathlib import Path

import torch
from data_kit import PixelTokenizer, pictures

from gentok.data.sharded_encoding import encode_together
from gentok.data.token_cache import encode_set

ITEMS = 6000


class Marked(PixelTokenizer):
    """Every file differs from the one before in all its codes: a mixture of two would be seen."""

    def __init__(self, mark):
        super().__init__(vocab=60000)
        self.mark = mark

    def encode(self, media, lengths=None, rng=None):
        tokens = super().encode(media)
        tokens.codes.fill_(self.mark)
        return tokens


def main(folder: Path, rank: int = 0, world: int = 1) -> None:
    torch.set_num_threads(1)
    data = pictures(ITEMS)
    if world > 1:
        path = encode_together(
            Marked(1), data, folder / "t.safetensors", rank=rank, world=world, batch_size=500, progress=False, patience=600
        )
        print(path, flush=True)
        return
    for mark in range(1, 50000):
        encode_set(Marked(mark), data, folder / "t.safetensors", batch_size=ITEMS, progress=False)
        if mark == 1:
            print("ready", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
