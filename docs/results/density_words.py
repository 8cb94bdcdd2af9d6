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
    "says": "",
}
XAR = {
    "cost": """Entities see one another in order, so pooling is inside of an entity, and means and attention between few vectors and all have the mask of the entities:
nothing leaks. A quarter of each cell's vectors is left. `all cells`: one pass over all cells, as in training, without its backward pass. `the last cell`: one
call of its solver, the other cells being in the cache.""",
    "small": "Width 96, 8 blocks, 4 cells of 4 × 4 vectors, 16 images",
    "b": "`imagenet256/xar_b`: width 768, 16 blocks, 4 cells of 8 × 8 vectors, one image",
    "says": "",
}
ENCODER = {
    "what": """Token merging (ToMe, arXiv 2210.09461) makes r patches of every block fewer, and fits FlexTok's encoder well, since only registers leave it.
[density_encoder.py](density_encoder.py) holds it: keys are matched between even and odd patches, the r best pairs become their weighted means, and attention counts a patch as
often as it stands for one, so that merging equal patches changes nothing. Qualities are of the dense models above, run with merging, and of one that was trained with it.""",
    "says": "",
}
