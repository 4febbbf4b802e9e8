"""What is computed again for the gradient changes neither parameters nor gradients, and less is kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from module_trials import compiled, param_shapes, random_array, random_params

from ldm_jax.autoencoder.encoder_decoder import Decoder, Encoder
from ldm_jax.config import AutoencoderConfig, UNetConfig
from ldm_jax.denoiser.unet import UNet

SIZES = {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "num_groups": 4, "attention_levels": (1,)}
NETWORKS = {
    "unet": (
        lambda **compute: UNet(UNetConfig(**SIZES, num_head_channels=4, dropout=0.5), 3, **compute),
        (random_array(2, 4, 4, 3), np.array([3, 500]), random_array(2, 3, 6)),
    ),
    "encoder": (lambda **compute: Encoder(AutoencoderConfig(**SIZES), 4, **compute), (random_array(2, 4, 4, 3),)),
    "decoder": (lambda **compute: Decoder(AutoencoderConfig(**SIZES), 3, **compute), (random_array(2, 2, 2, 4),)),
}
POLICIES = ("attention", "blocks", "full")


def gradient_of(network: Any, inputs: tuple) -> Any:
    """The gradient of a training call, with dropout, as a function of the parameters."""

    inputs = tuple(map(jnp.asarray, inputs))

    def loss(params: Any) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        return jnp.sum(jnp.square(network.apply({"params": params}, *inputs, train=True, rngs=rngs)))

    return jax.grad(loss)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("remat", POLICIES)
def test_parameters_keep_their_paths(name: str, remat: str) -> None:
    make, inputs = NETWORKS[name]
    assert param_shapes(make(remat=remat), *inputs) == param_shapes(make(), *inputs)


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        *(pytest.param("unet", policy, marks=pytest.mark.slow) for policy in ("blocks", "attention", "full")),
        ("decoder", "full"),
    ],
)
def test_gradients_are_the_same(name: str, remat: str) -> None:
    make, inputs = NETWORKS[name]
    params = random_params(make(), *inputs)
    kept = compiled(gradient_of(make(), inputs))(params)
    again = compiled(gradient_of(make(remat=remat), inputs))(params)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(kept))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * scale), again, kept)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "unet" else n for n in NETWORKS])
def test_each_policy_computes_more_again_than_the_one_before(name: str) -> None:
    make, inputs = NETWORKS[name]

    def regions(remat: str) -> int:
        network = make(remat=remat)
        params = random_params(network, *inputs)
        return str(jax.make_jaxpr(gradient_of(network, inputs))(params)).count("prevent_cse=")

    counts = [regions(remat) for remat in ("none", *POLICIES)]
    assert counts[0] == 0 and sorted(set(counts)) == counts
