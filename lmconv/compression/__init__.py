"""Images in the bits that a model promises."""
