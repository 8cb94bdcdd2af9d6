"""Train a tokenizer or a generator: `python train.py experiment=mnist5k/vq`. What can be set: `python train.py --help`, and conf/."""

from gentok.cli import train

if __name__ == "__main__":
    train()
