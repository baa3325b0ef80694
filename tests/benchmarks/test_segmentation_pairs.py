"""The pair of CamVid is what it says: a small network, labels of 11 classes, and a part that is not labelled."""

import torch


def test_the_network_reads_streets(program):
    pairs = program("segmentation_pairs")
    images, maps = torch.randint(256, (3, 3, 24, 32), dtype=torch.uint8), torch.randint(12, (3, 24, 32))
    data = pairs.Streets(images, maps.to(torch.uint8))
    rows = [data[i] for i in range(3)]
    labels = torch.stack([row["labels"] for row in rows])
    assert ((labels == 255) == (maps == 11)).all()
    outputs = pairs.SmallUNet()(torch.stack([row["pixel_values"] for row in rows]), labels)
    assert outputs.logits.shape == (3, 11, 12, 16)
    own = pairs.lovasz(None)(outputs, labels)
    assert own.isfinite()
    assert outputs.loss.isfinite()
