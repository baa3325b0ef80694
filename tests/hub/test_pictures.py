"""Pictures of surrogates."""

import pytest
from matplotlib.figure import Figure

from hf_reloss import hand_made_loss
from hf_reloss.hub.pictures import plot_curve


def test_a_loss_without_a_curve_is_refused():
    with pytest.raises(ValueError, match="'focal' has no curve of one variable"):
        plot_curve(Figure().subplots(), hand_made_loss("focal").facts())
