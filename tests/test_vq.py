"""The VQ autoencoder: PyTorch's numbers, the nearest code by brute force, and where gradients go."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign_tensors import assert_close
from golden_weights import golden_arrays, golden_autoencoder
from module_trials import apply, compiled, num_params, random_array, random_params

from ldm_jax import rng
from ldm_jax.autoencoder.build import make_autoencoder
from ldm_jax.autoencoder.code_averages import CodeAverages, follow, restart
from ldm_jax.autoencoder.vq import AutoencoderVQ, Codebook, perplexity, unit_length
from ldm_jax.config import AutoencoderVQConfig

TINY = AutoencoderVQConfig(
    base_channels=4,
    channel_mult=(1,),
    num_res_blocks=1,
    mid_attention=False,
    patch_size=2,
    num_groups=2,
    latent_channels=2,
    codebook_size=16,
    codebook_weight=2.0,
    commitment_cost=0.25,
)
KEYS = rng.sample_keys(rng.root_key(0), jnp.arange(2))
PICTURE = jnp.asarray(random_array(2, 8, 4, 3))


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"channel_mult": (1, 2, 4), "latent_channels": 3}, 55_322_782),  # vq-f4
        ({"channel_mult": (1, 2, 4), "latent_channels": 3, "mid_attention": False}, 53_219_486),  # vq-f4-noattn
        (
            {"channel_mult": (1, 2, 2, 4), "latent_channels": 4, "attention_levels": (3,), "codebook_size": 16384},
            67_717_295,  # vq-f8
        ),
    ],
)
def test_parameter_counts_are_those_published(changes: dict, count: int) -> None:
    module = make_autoencoder(AutoencoderVQConfig(**changes), 3, "float32")
    assert num_params(module, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), KEYS[:1]) == count


def test_it_computes_what_pytorch_computes() -> None:
    golden, (record, params) = golden_arrays("autoencoder_vq"), golden_autoencoder("autoencoder_vq")
    module = make_autoencoder(record.config, record.out_channels, "float32")

    def call(method: str, x: np.ndarray):
        return compiled(lambda p, x: module.apply({"params": p}, x, method=method))(params, x)

    assert_close(call("encode", golden["sample"]).mean, golden["latents"])
    zq, indices = call("quantize", golden["latents"])
    np.testing.assert_array_equal(indices.reshape(-1), golden["indices"])
    assert_close(zq, golden["quantized"])
    assert_close(call("decode", golden["latents"]), golden["reconstruction"])


@pytest.mark.parametrize("spread", [1e-4, 1.0])
def test_the_nearest_code_by_brute_force(spread: float) -> None:
    """Also for codes as close together as the initial ones are, far from the latents."""
    codes, z = spread * random_array(200, 3), random_array(2, 5, 4, 3, seed=1)
    indices = apply(Codebook(200, 3), {"embedding": codes}, z, method="indices")
    exact = np.asarray(z, np.float64)[..., None, :] - np.asarray(codes, np.float64)
    np.testing.assert_array_equal(indices, np.sum(exact**2, axis=-1).argmin(axis=-1))


def test_a_code_is_its_own_nearest_code() -> None:
    book = Codebook(50, 4)
    params = {"embedding": random_array(50, 4)}
    every = np.arange(50).reshape(2, 25)
    codes = apply(book, params, every, method="look_up")
    np.testing.assert_array_equal(codes, params["embedding"][every])
    np.testing.assert_array_equal(apply(book, params, codes, method="indices"), every)


def test_codes_start_uniformly_within_one_over_their_number() -> None:
    book = Codebook(64, 3)
    codes = compiled(lambda key: book.init(key, jnp.zeros((1, 4), jnp.int32), method="look_up"))(jax.random.key(0))
    codes = codes["params"]["embedding"]
    assert np.abs(codes).max() <= 1 / 64 and np.abs(codes).max() > 0.9 / 64
    np.testing.assert_allclose(np.std(codes), 1 / 64 / np.sqrt(3), rtol=0.15)


def test_perplexity_counts_the_codes_in_use() -> None:
    count = compiled(lambda indices: perplexity(indices, 16))
    assert count(np.zeros((4, 4), np.int32)) == pytest.approx(1.0)
    assert count(np.arange(16).reshape(4, 4)) == pytest.approx(16.0, rel=1e-5)
    assert count(np.array([[0, 7, 0, 7]] * 4)) == pytest.approx(2.0, rel=1e-5)


@pytest.fixture(scope="module")
def tiny():
    """Everything that the tests below ask of the tiny autoencoder, from one compilation."""
    module = AutoencoderVQ(TINY)
    params = random_params(module, PICTURE, KEYS)

    near_codes = {name: params[name] for name in ("quant_conv", "codebook", "post_quant_conv")}

    def call(near_codes):
        reconstruction, regulariser, metrics = module.apply({"params": {**params, **near_codes}}, PICTURE, KEYS)
        return jnp.stack([jnp.sum(reconstruction), jnp.sum(regulariser)]), (reconstruction, regulariser, metrics)

    def results(near_codes):
        variables = {"params": {**params, **near_codes}}
        posterior = module.apply(variables, PICTURE, method="encode")
        zq, indices = module.apply(variables, posterior.mode(), method="quantize")
        decoded = module.apply(variables, posterior.mode(), method="decode")
        parts = {"posterior": posterior, "sample": posterior.sample(KEYS), "zq": zq, "indices": indices}
        parts |= {"decoded": decoded, "perplexity": perplexity(indices, 16)}
        _, pull_back, outputs = jax.vjp(call, near_codes, has_aux=True)
        gradients = [pull_back(which)[0] for which in jnp.eye(2)]  # of the reconstruction, of the regulariser
        return parts, outputs, gradients

    return *compiled(results)(near_codes), near_codes


def largest(gradient: dict) -> list[float]:
    """Largest value of the gradient in the encoder's last layer, the codebook and the decoder's first layer."""
    parts = (gradient[name] for name in ("quant_conv", "codebook", "post_quant_conv"))
    return [max(float(np.abs(g).max()) for g in jax.tree.leaves(tree)) for tree in parts]


def test_the_reconstruction_teaches_the_encoder_straight_through_and_not_the_codes(tiny) -> None:
    encoder, codes, decoder = largest(tiny[2][0])
    assert encoder > 1e-3 and decoder > 1e-3 and codes == 0


def test_the_gradient_passes_the_lookup_as_if_it_were_the_identity(tiny) -> None:
    """Latents and codes enter one affine layer, so the gradient of its input is known from that of its bias."""
    _, _, (gradient, _), params = tiny
    through = gradient["post_quant_conv"]["bias"] @ params["post_quant_conv"]["kernel"][0, 0].T
    np.testing.assert_allclose(gradient["quant_conv"]["bias"], through, rtol=1e-4)


def test_the_regulariser_teaches_codes_and_encoder_and_not_the_decoder(tiny) -> None:
    encoder, codes, decoder = largest(tiny[2][1])
    assert encoder > 1e-4 and codes > 1e-4 and decoder == 0


def test_the_commitment_term_alone_pulls_the_latents_and_the_other_term_alone_the_codes(tiny) -> None:
    """Equation (2): the gradients of |z - zq|^2, each with its own weight."""
    parts, _, gradients, _ = tiny
    z, zq = parts["posterior"].mean, parts["zq"]
    pull = 2.0 * 2 * (zq - z).reshape(-1, 2) / z[0].size  # codebook_weight is 2
    expected = np.zeros((16, 2))
    np.add.at(expected, np.ravel(parts["indices"]), pull)
    np.testing.assert_allclose(gradients[1]["codebook"]["embedding"], expected, atol=1e-5)
    np.testing.assert_allclose(gradients[1]["quant_conv"]["bias"], -0.25 * pull.sum(axis=0), rtol=1e-4)


def test_the_forward_pass_is_the_decoded_code_and_the_weighted_distance_to_it(tiny) -> None:
    parts, (reconstruction, regulariser, metrics), *_ = tiny
    assert reconstruction.shape == PICTURE.shape
    np.testing.assert_allclose(reconstruction, parts["decoded"], atol=1e-5)
    distance = np.mean(np.square(parts["posterior"].mean - parts["zq"]), axis=(1, 2, 3))
    np.testing.assert_allclose(regulariser, 2.0 * (1 + 0.25) * distance, rtol=1e-5)
    np.testing.assert_allclose(metrics["codebook_loss"], distance.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["perplexity"], parts["perplexity"], rtol=1e-5)


COSINE = Codebook(50, 4, cosine=True)


def lengths_of(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=-1)


def test_the_nearest_cosine_code_is_that_of_the_smallest_angle_whatever_the_lengths() -> None:
    codes, z = random_array(50, 4), random_array(2, 5, 4, seed=1)
    of_codes, of_z = (np.exp(random_array(*x.shape[:-1], 1, seed=2)) for x in (codes, z))
    indices = apply(COSINE, {"embedding": codes}, z, method="indices")
    cosines = (z @ codes.T) / (lengths_of(z)[..., None] * lengths_of(codes))
    np.testing.assert_array_equal(indices, cosines.argmax(axis=-1))
    np.testing.assert_array_equal(apply(COSINE, {"embedding": of_codes * codes}, of_z * z, method="indices"), indices)
    plain = apply(Codebook(50, 4), {"embedding": of_codes * codes}, of_z * z, method="indices")
    assert (plain != indices).any(), "where lengths count, other codes are nearest"


def test_cosine_codes_are_looked_up_with_length_1() -> None:
    codes = 3 * random_array(50, 4)
    found = apply(COSINE, {"embedding": codes}, np.arange(50), method="look_up")
    np.testing.assert_allclose(found, codes / lengths_of(codes)[:, None], rtol=1e-5)


def test_a_vector_without_length_has_a_finite_gradient() -> None:
    value, gradient = compiled(jax.value_and_grad(lambda x: jnp.sum(unit_length(x))))(np.zeros((2, 3), np.float32))
    assert value == 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize("codes", ["gradient", "average"])
def test_the_cosine_loss_is_that_of_vectors_of_length_1(codes: str) -> None:
    """And the averages take in such vectors: a code is where they point to."""
    module = AutoencoderVQ(dataclasses.replace(TINY, cosine_codes=True, codes=codes))
    params = random_params(module, PICTURE, KEYS)
    params["codebook"]["embedding"] *= 5

    def results(params):
        z = module.apply({"params": params}, PICTURE, method="encode").mean
        zq, indices = module.apply({"params": params}, z, method="quantize")
        return z, zq, indices, module.apply({"params": params}, PICTURE, KEYS)[1:]

    z, zq, indices, (regulariser, metrics) = compiled(results)(params)
    np.testing.assert_allclose(lengths_of(z), 1, rtol=1e-5)
    np.testing.assert_allclose(lengths_of(zq), 1, rtol=1e-5)
    distance = (1 - np.sum(z * zq, axis=-1)).mean(axis=(1, 2))  # half of |z - zq|^2 of unit vectors, over two channels
    np.testing.assert_allclose(metrics["codebook_loss"], distance.mean(), rtol=1e-4)
    np.testing.assert_allclose(regulariser, 2.0 * ((codes == "gradient") + 0.25) * distance, rtol=1e-4)
    if codes == "average":
        total = np.zeros((16, 2))
        np.add.at(total, indices.reshape(-1), z.reshape(-1, 2))
        np.testing.assert_allclose(metrics["code_total"], total / indices.size, atol=1e-5)


def test_cosine_codes_that_follow_are_means_of_directions_and_restart_beside_one() -> None:
    """Shorter than 1 where vectors differ, and of length 1 again where they are looked up."""
    book, numbers = Codebook(4, 3, cosine=True), np.random.default_rng(0)
    centres = np.eye(3, dtype=np.float32)
    z = np.repeat(centres, 20, axis=0) + 0.3 * numbers.normal(size=(60, 3)).astype(np.float32)
    z *= numbers.uniform(0.1, 10, (60, 1)).astype(np.float32)
    unused = -np.ones((1, 3), np.float32)
    start = np.concatenate([centres + 0.1, unused]) / 1000  # as short as codes are at first

    def train(codes, z):
        z = unit_length(z)

        def step(averages, key):
            chosen = book.apply({"params": {"embedding": averages.codes}}, z, method="indices")
            hot = jax.nn.one_hot(chosen, 4)
            return restart(follow(averages, hot.mean(0), hot.T @ z / len(z), 0.8), 0.1, key), None

        averages, _ = jax.lax.scan(step, CodeAverages.of_codes(codes), jax.random.split(jax.random.key(0), 40))
        found = book.apply({"params": {"embedding": averages.codes}}, jnp.arange(4), method="look_up")
        return averages, averages.codes, found

    averages, codes, found = compiled(train)(start, z)
    np.testing.assert_allclose(lengths_of(found), 1, rtol=1e-5)
    assert (lengths_of(codes) < 0.999).all() and (lengths_of(codes) > 0.5).all()
    assert (found @ centres.T).max(axis=0).min() > 0.9, "a code for each direction"
    assert (found[3] @ centres.T).max() > 0.8 and averages.share.min() > 0.02, "also the one that had no work"


def test_the_posterior_is_a_point(tiny) -> None:
    parts = tiny[0]
    assert parts["posterior"].mean.shape == (2, 4, 2, 2)
    np.testing.assert_array_equal(parts["sample"], parts["posterior"].mean)
