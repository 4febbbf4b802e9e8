"""The first stage with a codebook, on OpenMoji pictograms of 64 pixels: 8x8 codes of 512.

    pip install "ldm_jax[demo,perceptual]"
    python train.py openmoji_vq
    ldm evaluate runs/openmoji_vq --reconstruction

As openmoji_kl, with codes that follow by moving averages and are restarted when they have no work.

Hardware: two CPU cores; 11 and 21 minutes on one core of an EPYC beside other work (2026-12-01), not measured on two.
Result: docs/first_stage.md.
"""

import dataclasses

from ldm_jax.config import AutoencoderVQConfig, Experiment, load_experiment


def get_config() -> Experiment:
    """A VQ autoencoder against L1, LPIPS and a discriminator."""
    kl = load_experiment("openmoji_kl")
    autoencoder = AutoencoderVQConfig(
        base_channels=48,
        channel_mult=(1, 2),
        num_res_blocks=1,
        patch_size=4,
        latent_channels=8,
        num_groups=16,
        codebook_size=512,
        codes="average",
        code_decay=0.95,
        restart_usage=0.1,
    )
    first_stage = dataclasses.replace(kl.first_stage, autoencoder=autoencoder)
    return dataclasses.replace(kl, name="openmoji_vq", first_stage=first_stage)
