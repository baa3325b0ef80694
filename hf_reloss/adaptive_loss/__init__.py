"""Adaptive loss alignment: the controller of a loss (Huang et al. 2019, arXiv:1905.05895), which knows no trainer."""
