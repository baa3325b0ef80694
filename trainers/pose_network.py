"""The simple baseline of pose estimation (Xiao et al. 2018, arXiv:1804.06208): a backbone, deconvolutions, heatmaps."""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel, ResNetConfig, initialization
from transformers.utils import ModelOutput

from hf_reloss.losses.heatmaps import labelled, squared_errors


class SimplePoseConfig(PreTrainedConfig):
    """Configuration of `SimplePoseModel`.

    Args:
        backbone_config: of one of transformers' backbones, or as a dict with its `model_type`; by default a ResNet-50.
            Its last feature map is read.
        num_joints: how many heatmaps there are.
        deconvolutions: channels of each deconvolution, which makes feature maps twice as high and wide.
        sigma: standard deviation of the targets, in pixels of the heatmaps; by default a 32nd of their longer side, at
            least 1.
    """

    model_type = "simple_pose"
    sub_configs: ClassVar = {"backbone_config": AutoConfig}

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    num_joints: int = 17
    deconvolutions: list[int] | tuple[int, ...] = (256, 256, 256)
    sigma: float | None = None

    def __post_init__(self, **kwargs: Any):
        if self.backbone_config is None:
            self.backbone_config = ResNetConfig()
        elif isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        super().__post_init__(**kwargs)


@dataclass
class PoseOutput(ModelOutput):
    """What `SimplePoseModel` puts out.

    Attributes:
        loss: a scalar, where there are labels.
        heatmaps: [N, K, H, W] of K joints.
    """

    loss: torch.Tensor | None = None
    heatmaps: torch.Tensor | None = None


class SimplePoseModel(PreTrainedModel):
    """From images to a heatmap for each joint.

    Its own loss is the mean squared error of the heatmaps of labelled joints against Gaussians.
    """

    config_class = SimplePoseConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SimplePoseConfig):
        super().__init__(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        widths = [self.backbone.channels[-1], *config.deconvolutions]
        self.deconvolutions = nn.Sequential()
        for before, width in itertools.pairwise(widths):
            deconvolution = nn.ConvTranspose2d(before, width, kernel_size=4, stride=2, padding=1, bias=False)
            self.deconvolutions.extend([deconvolution, nn.BatchNorm2d(width), nn.ReLU()])
        self.head = nn.Conv2d(widths[-1], config.num_joints, kernel_size=1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in the paper: nearly nothing is lit at the start."""
        if isinstance(module, nn.ConvTranspose2d) or module is self.head:
            initialization.normal_(module.weight, std=0.001)
            if module.bias is not None:
                initialization.zeros_(module.bias)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> PoseOutput:
        """Heatmaps and, with labels, the model's own loss.

        Args:
            pixel_values: [N, C, height, width].
            labels: [N, K, 3], x and y of each joint in pixels of the heatmaps, and visibility, above 0 if labelled.
        """
        features = self.backbone(pixel_values).feature_maps[-1]
        heatmaps = self.head(self.deconvolutions(features))
        if labels is None:
            return PoseOutput(heatmaps=heatmaps)
        points, counts = labelled(labels)
        errors = squared_errors(heatmaps.float(), points, self.config.sigma).masked_fill(~counts, 0.0)
        return PoseOutput(loss=errors.sum() / counts.sum().clamp(min=1), heatmaps=heatmaps)


AutoConfig.register(SimplePoseConfig.model_type, SimplePoseConfig, exist_ok=True)
