"""Makes the loss of chosen training steps NaN."""

from cxr.data import transforms


class PoisonedNormalizer(transforms.Normalizer):
    """Makes the images of chosen calls NaN; the calls of an evaluation follow those of its epoch's steps."""

    poisoned = ()
    num_calls = 0

    def __call__(self, images):
        type(self).num_calls += 1
        values = super().__call__(images)
        return values * float("nan") if self.num_calls in self.poisoned else values
