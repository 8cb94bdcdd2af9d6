"""Two processes of which each finds another picture broken; run by test_broken_pictures.py: python broken_processes.py FOLDER"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from gentok.data.folder import ImageFolder


def main(root: Path) -> None:
    torch.set_num_threads(1)
    child = os.fork()
    rank = int(child == 0)
    dist.init_process_group("gloo", init_method=f"file://{root / 'meet'}", rank=rank, world_size=2)
    data = ImageFolder(root / "pictures", held_out=0.2, max_broken=1)
    broken = [i for i, name in enumerate(data.train.names) if name.endswith("_cut.png")]
    data.train.__getitems__([broken[rank]])
    found = len(data.train.broken)
    data.train.agree()
    skipped = data.train.skipped
    (root / f"rank{rank}").write_text(f"{found} {skipped['count']} {len(skipped['files'])}")
    dist.destroy_process_group()
    if rank:
        os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
