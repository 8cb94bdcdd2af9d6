"""Sample from a bundle or a training checkpoint: `python sample.py ckpt=docs/zoo/mnist5k_ar n=16 condition=7`."""

from gentok.cli import sample

if __name__ == "__main__":
    sample()
