"""The architectures of the table: what builds each, and the size of its images.

Images are small where an architecture takes any size, so that the whole table is measured in an hour or two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_SIZE = 96


@dataclass(frozen=True)
class Architecture:
    """One row: ``source`` as in a recipe, ``kwargs`` of the factory, ``size`` of the square images.

    ``convolutional`` says that nearly all its work is convolutions and linear layers: no attention.
    """

    source: str
    size: int = _SIZE
    kwargs: dict[str, Any] = field(default_factory=dict)
    convolutional: bool = True

    @property
    def name(self) -> str:
        """The name without what builds it."""
        return self.source.partition(":")[2].rpartition(":")[2]


def _torchvision(name: str, size: int = _SIZE, *, convolutional: bool = True, **kwargs: Any) -> Architecture:
    return Architecture(f"torchvision:{name}", size, kwargs, convolutional)


def _timm(name: str, size: int = _SIZE, *, convolutional: bool = True, **kwargs: Any) -> Architecture:
    return Architecture(f"timm:{name}", size, kwargs, convolutional)


def _dense(name: str, size: int = 128) -> Architecture:
    """A network of images to images of torchvision, whose result is taken out of a dictionary."""
    return Architecture(f"python:dense_predictors.py:{name}", size)


ARCHITECTURES = (
    _torchvision("alexnet", 224),
    _torchvision("vgg11_bn", 224),
    _torchvision("squeezenet1_1"),
    _torchvision("resnet18"),
    _torchvision("resnet50"),
    _torchvision("wide_resnet50_2"),
    _torchvision("resnext50_32x4d"),
    _torchvision("regnet_x_400mf"),
    _torchvision("regnet_y_1_6gf"),
    _torchvision("densenet121"),
    _torchvision("googlenet", aux_logits=False, init_weights=True),
    _torchvision("inception_v3", 299, init_weights=True),
    _torchvision("mnasnet1_0"),
    _torchvision("mobilenet_v2"),
    _torchvision("mobilenet_v3_large"),
    _torchvision("shufflenet_v2_x1_0"),
    _torchvision("efficientnet_b0"),
    _torchvision("efficientnet_v2_s"),
    _torchvision("convnext_tiny"),
    _torchvision("vit_b_32", 224, convolutional=False),
    _torchvision("swin_t", 224, convolutional=False),
    _torchvision("maxvit_t", 224, convolutional=False),
    _dense("fcn_resnet50"),
    _dense("deeplabv3_resnet50"),
    _dense("deeplabv3_mobilenet_v3_large"),
    _dense("lraspp_mobilenet_v3_large"),
    _dense("fpn_resnet50"),
    _timm("bat_resnext26ts", 256, convolutional=False),
    _timm("botnet26t_256", 256, convolutional=False),
    _timm("caformer_s18", convolutional=False),
    _timm("coatnet_nano_rw_224", 224, convolutional=False),
    _timm("convformer_s18"),
    _timm("convmixer_768_32"),
    _timm("convnext_atto"),
    _timm("convnextv2_atto"),
    _timm("crossvit_9_240", 240, convolutional=False),
    _timm("csatv2", 128, convolutional=False),
    _timm("cspresnet50"),
    _timm("cspresnext50"),
    _timm("cs3darknet_s"),
    _timm("cs3sedarknet_l"),
    _timm("darknet53"),
    _timm("davit_tiny", convolutional=False),
    _timm("densenetblur121d"),
    _timm("dla34"),
    _timm("dla60_res2net"),
    _timm("dm_nfnet_f0"),
    _timm("dpn68"),
    _timm("eca_botnext26ts_256", 256, convolutional=False),
    _timm("eca_halonext26ts", 256, convolutional=False),
    _timm("eca_nfnet_l0"),
    _timm("ecaresnet26t"),
    _timm("edgenext_xx_small", convolutional=False),
    _timm("efficientformer_l1", 224, convolutional=False),
    _timm("efficientformerv2_s0", 224, convolutional=False),
    _timm("efficientnet_blur_b0"),
    _timm("efficientnet_cc_b0_4e"),
    _timm("efficientnet_lite0"),
    _timm("efficientnetv2_rw_t"),
    _timm("efficientvit_b0", convolutional=False),
    _timm("efficientvit_m0", 224, convolutional=False),
    _timm("ese_vovnet19b_dw"),
    _timm("fastvit_t8", 256, convolutional=False),
    _timm("fbnetc_100"),
    _timm("fbnetv3_b"),
    _timm("focalnet_tiny_srf", 224),
    _timm("gcresnet33ts"),
    _timm("gernet_s"),
    _timm("ghostnet_100"),
    _timm("ghostnetv2_100"),
    _timm("ghostnetv3_100"),
    _timm("halonet26t", 256, convolutional=False),
    _timm("hardcorenas_a"),
    _timm("hgnet_tiny"),
    _timm("hgnetv2_b0"),
    _timm("hrnet_w18_small"),
    _timm("inception_next_atto", 128),
    _timm("inception_resnet_v2", 160),
    _timm("inception_v4", 160),
    _timm("lambda_resnet26t", 256, convolutional=False),
    _timm("lcnet_050"),
    _timm("legacy_senet154"),
    _timm("legacy_xception"),
    _timm("levit_128s", 224, convolutional=False),
    _timm("levit_conv_128s", 224, convolutional=False),
    _timm("mambaout_femto"),
    _timm("maxxvit_rmlp_nano_rw_256", 256, convolutional=False),
    _timm("mixnet_s"),
    _timm("mixer_s32_224", 224, convolutional=False),
    _timm("mobilenet_edgetpu_100"),
    _timm("mobilenetv1_100"),
    _timm("mobilenetv3_small_050"),
    _timm("mobilenetv4_conv_small"),
    _timm("mobilenetv4_hybrid_medium", convolutional=False),
    _timm("mobilenetv5_base", 128, convolutional=False),
    _timm("mobileone_s0"),
    _timm("mobilevit_xxs", 128, convolutional=False),
    _timm("mobilevitv2_050", 128, convolutional=False),
    _timm("nest_tiny", 224, convolutional=False),
    _timm("nextvit_small", convolutional=False),
    _timm("nf_regnet_b0"),
    _timm("nf_resnet50"),
    _timm("pit_ti_224", 224, convolutional=False),
    _timm("poolformer_s12"),
    _timm("poolformerv2_s12"),
    _timm("pvt_v2_b0", convolutional=False),
    _timm("rdnet_tiny"),
    _timm("regnetv_040"),
    _timm("regnetz_005"),
    _timm("repghostnet_050"),
    _timm("repvgg_a0"),
    _timm("repvit_m1"),
    _timm("res2net50_26w_4s"),
    _timm("res2next50"),
    _timm("resmlp_12_224", 224, convolutional=False),
    _timm("resnest14d"),
    _timm("resnet26t"),
    _timm("resnet50_gn"),
    _timm("resnetblur50"),
    _timm("resnetaa50"),
    _timm("resnetrs50"),
    _timm("resnetv2_50"),
    _timm("resnetv2_50d_evos"),
    _timm("resnetv2_50x1_bit"),
    _timm("rexnet_100"),
    _timm("rexnetr_200"),
    _timm("sebotnet33ts_256", 256, convolutional=False),
    _timm("selecsls42b"),
    _timm("semnasnet_075"),
    _timm("seresnext26d_32x4d"),
    _timm("shvit_s1", 224, convolutional=False),
    _timm("skresnet18"),
    _timm("skresnext50_32x4d"),
    _timm("spnasnet_100"),
    _timm("starnet_s1"),
    _timm("swiftformer_xs", 224, convolutional=False),
    _timm("tf_efficientnet_b0"),
    _timm("tf_efficientnetv2_b0"),
    _timm("tf_mobilenetv3_small_minimal_100"),
    _timm("tf_mixnet_s"),
    _timm("tiny_vit_5m_224", 224, convolutional=False),
    _timm("tinynet_e"),
    _timm("tresnet_m"),
    _timm("vgg11"),
    _timm("visformer_tiny", 224, convolutional=False),
    _timm("vovnet39a"),
    _timm("xception41"),
    _timm("xception71"),
    _timm("xcit_nano_12_p16_224", 224, convolutional=False),
)
