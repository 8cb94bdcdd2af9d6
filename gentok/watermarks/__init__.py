"""Watermarks: which id is drawn follows numbers of a secret key, whose owner can find them again. One file per kind, named as in
conf/watermark.

`distortion_free` ones keep the distribution of every single item, over the random key: nobody without the key can tell from one item that
it is marked. Items that share a key are correlated with each other, which many of them together show. `detection.py` gives p-values.
"""
