"""What density.md says beside its figures."""

HEAD = """A diffusion transformer need not look at all tokens in all of its blocks (SparseDiT, arXiv 2412.06028): the lowest blocks pool, groups in the middle work
on few tokens, and the highest see all. `tokenizer.density=` of FlexTok and `generator.density=` of xAR do that;
[gentok/nn/density.py](../../gentok/nn/density.py) explains the settings, and null, the default, is the network without it.

```
python train.py experiment=cifar10/flextok tokenizer.decoder_depth=8 'tokenizer.density={_target_:gentok.nn.density.Density,rate:0.75}' ...
```

This page is made by `python docs/results/density.py page` from [density.json](density.json), where every figure has its command, seed, seconds and machine."""
DECODER = {
    "cost": """The decoder of 8 blocks of width 96 on 64 patches and 16 registers: one block pools, a group has 3 sparse blocks, one block is dense at the top. Operations
are those of one image, counted by torch; times are of 32 images on one thread as a ratio to the dense network, in turn in one process: the median of 9
rounds, with the least and the greatest. Other processes shared the two cores.""",
    "large": """That of `imagenet256/flextok_d12_d12`, 12 blocks of width 768 on 256 patches and 256 registers, untrained: two blocks pool, two groups have 2 sparse blocks
each. One image, medians of 3 rounds. Registers are half of its tokens, so without them in the sparse blocks more is saved.""",
    "quality": """Trained for {minutes} processor minute each on one thread, or for as many steps as the dense network of the same seed had in it. Held-out loss: the flow's, on
{items:,} photographs, whose times and noise are the same for all. PSNR is of {pictures} reconstructions from all 16 tokens by {steps} Euler steps. Two seeds. Trained this shortly, the figures tell an order of early training, and no more.""",
    "says": """* **Cost.** The aim was at least 35 % fewer operations, with the time that goes with it. The small decoder reaches it at all three settings: 35, 47 and 43 %
  fewer operations take 0.69, 0.56 and 0.62 of the time. The large one misses it where its 256 registers go through the sparse blocks (26 %), and reaches 57
  and 56 % where they wait, in 0.60 and 0.53 of the time.
* **Quality in the same time.** With a quarter of the patches, registers waiting, the losses are those of the dense network (the seeds differ by 0.01, the
  two networks by 0.002 at most), and PSNR is higher by 0.4 and 0.6 dB. It had 35 % more steps.
* **Quality in the same steps.** It loses 0.03 in both seeds: that is the price of few tokens, before time is counted. Its sparse blocks begin without effect
  and are to be learnt first; the paper begins from a trained dense network instead.
* **A rate that depends on t** is a miss in training at this batch: its 16 rows fall into up to five levels, which are computed apart, so that as many steps
  took 62 and 63 processor seconds where the dense network took 60. Its loss is higher by 0.02 and 0.06 in the same time, by 0.03 and 0.07 in the same steps.
  With 32 rows a step takes 0.70 of the dense time. In sampling all rows have one time, and all of the saving is there.
* The setting with registers in the sparse blocks was not trained, nor was the large decoder."""
}
XAR = {
    "cost": """Entities see one another in order, so pooling is inside of an entity, and means and attention between few vectors and all have the mask of the entities:
nothing leaks. A quarter of each cell's vectors is left. `all cells`: one pass over all cells, as in training, without its backward pass. `the last cell`: one
call of its solver, the other cells being in the cache.""",
    "small": "Width 96, 8 blocks, 4 cells of 4 × 4 vectors, 16 images",
    "b": "`imagenet256/xar_b`: width 768, 16 blocks (two pool, two groups have 3 sparse blocks each), 4 cells of 8 × 8 vectors, one image",
    "says": """41 % fewer operations in both. In the large model they take 0.68 of the time of a pass, and 0.78 of that of a call. In the small one a call, of 16 vectors of
each of 16 images, takes 0.9 of the time, and in some rounds more than the dense one: cells of 4 × 4 vectors are too small for a density to pay in sampling. No xAR
was trained with a density for this page."""
}
ENCODER = {
    "what": """Token merging (ToMe, arXiv 2210.09461) makes r patches of every block fewer, and fits FlexTok's encoder well, since only registers leave it.
[density_encoder.py](density_encoder.py) holds it: keys are matched between even and odd patches, the r best pairs become their weighted means, and attention counts a patch as
often as it stands for one, so that merging equal patches changes nothing. PSNR is of {pictures} held-out digits, by a FlexTok
with a regression decoder and an encoder of the first size, trained for 40 processor seconds without merging and run with it; losses are of the dense model of seed 0 above.""",
    "says": """Decision: left out. Merging half of the patches in every block saves 32 % of the small encoder's operations and a fifth of its time; with as many registers as
patches, as published, 26 % and a fifth, since registers are not merged. Only an encoder of few registers comes to the 35 % that were asked of the decoder
(35 and 46 %, in 0.70 and 0.66 of the time). And the encoder is a small part: a fifth of the operations of a training step, 3 % of those of encoding and decoding an image.
What it costs in quality is not shown: in models trained this shortly merging changes neither figure, though both depend on the codes (the last row). A
longer training would have to tell before the option is worth its code."""
}
