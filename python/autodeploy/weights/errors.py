"""The one exception of this package."""


class WeightError(ValueError):
    """A bad checkpoint or weight program: `[where] what was expected, what was found, what to do`."""
