"""The Hub: pages of surrogates and of models trained on them, publishing, finding, and what comes with this package.

It takes facts about a surrogate, and never the surrogate itself.
"""

LIBRARY = "hf_reloss"

TAG = "reloss"
"""All surrogates have it, so that they can be found; models that were trained on them have the library's name."""

ORGANISATION = "reloss"
"""Whose surrogates come with this package."""

PAGE, PICTURE = "README.md", "alignment.png"
