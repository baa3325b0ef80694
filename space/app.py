"""The Space: the page of `reloss app`, as the package has it."""

from hf_reloss.app import launch

launch()
