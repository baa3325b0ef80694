"""The Hub: pages of surrogates and of models trained on them, publishing, finding, and what comes with this package.

It takes facts about a surrogate, and never the surrogate itself.
"""

LIBRARY = "hf-reloss"

FORMER_LIBRARY = "hf_reloss"
"""What the library was called in pages of version 0.1."""

TAG = "reloss"
"""All surrogates have it, so that they can be found; models that were trained on them have the library's name."""

ORGANISATION = "reloss"
"""Whose surrogates come with this package."""

PAGE, PICTURE = "README.md", "alignment.png"
