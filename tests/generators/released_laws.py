"""Laws that hold for every generator of a release that models one code after the other given a class; and numbers that a release was
sampled with."""

import numpy as np
import torch
from generator_kit import at, codes, fed, same

from gentok.rng import RowRNG
from gentok.types import Class, ClassSpec, Condition, ConditionSpec

FIVE = ConditionSpec((("class", ClassSpec(tuple("01234"))),))


def classes(*ids):
    return Condition({"class": Class(torch.tensor(ids))})


class Numbers(RowRNG):
    """The numbers that a record was drawn with, in the order in which they are asked for; of all rows, whatever is asked for."""

    def __init__(self, seeds, draws=None):
        super().__init__(seeds)
        self.draws = draws or np.random.RandomState(1)

    def normal(self, *shape):
        return torch.from_numpy(self.draws.standard_normal((self.batch, *shape)))

    def uniform(self, *shape):
        return torch.from_numpy(self.draws.random_sample((self.batch, *shape)))

    def rows(self, index):
        return self


@torch.no_grad()
def check_cached_equals_uncached_with_rows_at_different_steps_that_move(model):
    """model: of a raster of at least 9 cells and of 3 classes, in float64."""
    tokens, condition = codes(model.spec, 3), classes(2, -1, 0)
    want, ids = model(tokens, condition), fed(model, tokens)
    cache = model.init_cache(condition, 3, 14)
    model.logits(ids[:, :4], cache, at(0, 0, 0))
    where = at(4, 1, 2)  # a row goes on, two go back
    got = model.logits(torch.stack([ids[b, int(w) : int(w) + 3] for b, w in enumerate(where)]), cache, where)
    assert all(same(want[b, int(w) : int(w) + 3], got[b]) for b, w in enumerate(where))
    swapped = model.take(cache, torch.tensor([2, 0]))  # a row begins anew in another's place
    joining = model.init_cache(classes(-1), 1, 14)
    model.logits(ids[1:2, :2], joining, at(0))
    model.put(swapped, torch.tensor([0]), joining)
    got = model.logits(torch.stack((ids[1, :2], ids[0, 7:9])), swapped, at(0, 7))
    assert same(want[1, :2], got[0]) and same(want[0, 7:9], got[1])
    tree = torch.tensor([[-1, -1, 1], [-1, 0, 0]])  # in each row node 2 follows what is right
    cache = model.init_cache(classes(2, -1), 2, 14)
    model.logits(ids[:2, :3], cache, at(0, 0))
    nodes = torch.stack((torch.stack((ids[1, 3], ids[0, 3], ids[0, 4])), torch.stack((ids[1, 3], ids[0, 4], ids[1, 4]))))
    got = model.logits(nodes, cache, at(3, 3), tree)
    assert same(want[0, 4], got[0, 2]) and same(want[1, 4], got[1, 2])
    model.commit(cache, at(3, 3), torch.tensor([[1, 2], [0, 2]]))
    assert same(want[:2, 5:6], model.logits(ids[:2, 5:6], cache, at(5, 5)))
    assert not same(want[0, 0], want[1, 0], 1e-3), "the class changes nothing: the test is blind"


def check_likelihood_is_that_of_logits_and_a_training_step_lowers_it(model, logits):
    """model: of 3 classes, in float32. logits: (tokens, condition) -> [B, N, V] of all cells, in their order."""
    tokens, condition = codes(model.spec, 4), classes(0, 1, 2, -1)
    logp = logits(tokens, condition).log_softmax(-1).gather(2, tokens.codes[:, 0, :, None]).sum((1, 2))
    torch.testing.assert_close(model.nll_bound(tokens, condition), -logp.detach())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.loss(tokens, condition, RowRNG.of(0, range(4))).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    model.eval()
    assert model.nll_bound(tokens, condition).sum() < -logp.sum()
