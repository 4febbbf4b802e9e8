"""Attention on a CPU, where the weights [b, n, q, k] cost more to write and read than to compute.

Short sequences are computed in one piece, but the softmax is divided by its sum only after the product with the
values, which are fewer than the weights. Long ones are computed a few heads at a time, whose weights stay in the cache,
and once more backward. Which of the two is decided by shape.

(1) o = sum_j p_j v_j / sum_j p_j,  p_j = exp(l_j - max l),  l = q k^T / sqrt(d)
(2) dl = p' * (do v^T - <o, do>),  dv = p'^T do,  dq = dl k / sqrt(d),  dk = dl^T q / sqrt(d)
    with p' = exp(l - m), m = max l + log sum_j p_j    Dao et al. 2022, arXiv:2205.14135, appendix B.2

Products of a transposed matrix of weights are slow, so that (2) is computed with p'^T and dl^T in place of p' and dl
where heads are narrow: then two of its three products take them as they lie, and the third is dq^T = k^T dl^T.

Forward and backward of 8 samples of 8 heads on one core (2026-11-30, Xeon with AVX-512, jax 0.10.2; medians of 31 to 41
in turn): 256 queries and keys of 8 channels 55 ms as softmax(l) v, 16 by (2) transposed; 256 on 77 of 8 channels 13.5
and 7.7; 64 on 77 of 16 channels 2.8 and 2.7, and 2.3 by (1) in one piece.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LONG = 2**14
"""Weights of one head from which on heads are computed a few at a time."""

NARROW = 32
"""Channels of a head below which (2) is computed transposed, and one head at a time."""

WEIGHTS_AT_ONCE = 2**19
"""Weights of the wider heads computed at a time: eight heads of 256 queries and keys; longer ones go alone."""

Residuals = tuple[Array, Array, Array, Array, Array]


def cpu_attention(
    query: Float[Array, "b q n d"], key: Float[Array, "b k n d"], value: Float[Array, "b k n d"]
) -> Float[Array, "b q n d"]:
    """Multi-head attention (1) without a mask; products in the inputs' type, softmax in float32."""
    if query.shape[1] * key.shape[1] < LONG:
        return in_one_piece(query, key, value)
    batch, _, heads, _ = query.shape
    o = few_at_a_time(*(_split_heads(x) for x in (query, key, value)))
    return jnp.moveaxis(o.reshape(batch, heads, *o.shape[1:]), 1, 2)


def in_one_piece(
    query: Float[Array, "b q n d"], key: Float[Array, "b k n d"], value: Float[Array, "b k n d"]
) -> Float[Array, "b q n d"]:
    """Equation (1) for all heads at once."""
    scaled = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("bqnd,bknd->bnqk", scaled, key, preferred_element_type=jnp.float32)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    total = jnp.moveaxis(jnp.sum(weights, axis=-1, keepdims=True), 1, 2)
    o = jnp.einsum("bnqk,bknd->bqnd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (o / total).astype(value.dtype)


@jax.custom_vjp
def few_at_a_time(
    query: Float[Array, "h q d"], key: Float[Array, "h k d"], value: Float[Array, "h k d"]
) -> Float[Array, "h q d"]:
    """Equation (1) for a few of `h` heads after others, and (2) backward."""
    return _forward(query, key, value)[0]


def _forward(
    query: Float[Array, "h q d"], key: Float[Array, "h k d"], value: Float[Array, "h k d"]
) -> tuple[Float[Array, "h q d"], Residuals]:
    def one(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q, k, v = inputs
        logits = _logits(q, k)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        o = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
        return o.astype(v.dtype), largest + jnp.log(total)

    o, log_total = jax.lax.map(one, (query, key, value), batch_size=_heads_at_once(query, key))
    return o, (query, key, value, o, log_total)


def _backward(residuals: Residuals, do: Float[Array, "h q d"]) -> tuple[Array, Array, Array]:
    query, key, *_ = residuals
    one = _transposed_gradients if query.shape[-1] < NARROW else _gradients
    return jax.lax.map(one, (*residuals, do), batch_size=_heads_at_once(query, key))


def _gradients(inputs: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """(2) of one head."""
    q, k, v, o, log_total, do = inputs
    weights = jnp.exp(_logits(q, k) - log_total)
    of_weights = jnp.dot(do, v.T, preferred_element_type=jnp.float32)
    of_logits = (weights * (of_weights - _inner(o, do)) * q.shape[-1] ** -0.5).astype(q.dtype)
    return of_logits @ k, of_logits.T @ q, weights.astype(do.dtype).T @ do


def _transposed_gradients(inputs: tuple[Array, ...]) -> tuple[Array, Array, Array]:
    """(2) of one head, by weights [k, q]; the barrier keeps `k` transposed in place of the larger `of_logits`."""
    q, k, v, o, log_total, do = inputs
    scaled = q * q.shape[-1] ** -0.5
    weights = jnp.exp(jnp.dot(k, scaled.T, preferred_element_type=jnp.float32) - log_total.T)
    of_weights = jnp.dot(v, do.T, preferred_element_type=jnp.float32)
    of_logits = (weights * (of_weights - _inner(o, do).T)).astype(q.dtype)
    of_query = (jax.lax.optimization_barrier(k.T) @ of_logits).T * q.shape[-1] ** -0.5
    return of_query, of_logits @ scaled, weights.astype(do.dtype) @ do


def _inner(o: Float[Array, "q d"], do: Float[Array, "q d"]) -> Float[Array, "q 1"]:
    return jnp.sum(o.astype(jnp.float32) * do.astype(jnp.float32), axis=-1, keepdims=True)


few_at_a_time.defvjp(_forward, _backward)


def _heads_at_once(query: Float[Array, "h q d"], key: Float[Array, "h k d"]) -> int:
    if query.shape[-1] < NARROW:
        return 1
    return max(WEIGHTS_AT_ONCE // (query.shape[1] * key.shape[1]), 1)


def _logits(query: Float[Array, "q d"], key: Float[Array, "k d"]) -> Float[Array, "q k"]:
    return jnp.dot(query * query.shape[-1] ** -0.5, key.T, preferred_element_type=jnp.float32)


def _split_heads(x: Float[Array, "b l n d"]) -> Float[Array, "h l d"]:
    return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], x.shape[3])
