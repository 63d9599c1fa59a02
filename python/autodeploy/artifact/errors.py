"""The one exception of this package."""


class ArtifactError(ValueError):
    """A malformed artifact or Program: `[where] what was expected, what was found, what to do`."""
