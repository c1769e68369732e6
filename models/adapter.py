"""The low-rank update of one matrix, for several adapters at once (LoRA, Hu et al. 2021, arXiv:2106.09685; DoRA, Liu et
al. 2024, arXiv:2402.09353).

Shapes: A adapters, I and O the sides of the matrix, R rank, B batch, T sequence, V vocabulary, D embed.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from models.rows import RowContext, dropped
from models.sharding import constrain


class Adapter(nnx.Module):
    """Low-rank updates of one matrix [I, O], of which each row of a batch uses one or none.

    Args:
      a, b: [..., A, I, R] and [..., A, R, O], stacked layers in front; magnitude: [..., A, O] for DoRA.
      axes: logical names of I and O. scales: factor on a b of every adapter. dropout: rate on the input.
      path: of the matrix; names the stream of dropout.
    """

    def __init__(
        self,
        a: Array,
        b: Array,
        magnitude: Array | None,
        *,
        axes: tuple[str, str],
        scales: tuple[float, ...],
        dropout: float = 0.0,
        dtype: str = "float32",
        path: str = "",
    ):
        self.a = nnx.Param(a, axes=("adapters", axes[0], "rank"))
        self.b = nnx.Param(b, axes=("adapters", "rank", axes[1]))
        self.magnitude = None if magnitude is None else nnx.Param(magnitude, axes=("adapters", axes[1]))
        self.axes, self.scales, self.dropout, self.dtype, self.path = axes, scales, dropout, dtype, path

    def __call__(
        self,
        x_BTI: Float[Array, "*batch I"],
        y_BTO: Float[Array, "*batch O"],
        kernel: Callable[[], Array],
        rows: RowContext | None,
    ) -> Float[Array, "*batch O"]:
        """`y` = x @ kernel with the update of every row's adapter. kernel: gives the matrix, which only DoRA reads."""
        update_BTO = self.raise_rank(self.lower(x_BTI, rows))
        if self.magnitude is None:
            return y_BTO + update_BTO
        return (y_BTO + update_BTO) * self.chosen_factor(kernel(), rows).astype(y_BTO.dtype)

    def lookup(
        self,
        inputs_BT: Int[Array, "B T"],
        x_BTD: Float[Array, "B T D"],
        table: Callable[[], Array],
        rows: RowContext | None,
    ) -> Float[Array, "B T D"]:
        """The same for a token table [V, D], of which `x` are the rows of `inputs`; nothing is dropped, as in PEFT."""
        a_AVR = self._whole(self.a)
        update_BTD = self.raise_rank(self._chosen(jnp.moveaxis(a_AVR[:, inputs_BT], 0, -2), rows))
        if self.magnitude is None:
            return x_BTD + update_BTD
        return (x_BTD + update_BTD) * self.chosen_factor(table(), rows).astype(x_BTD.dtype)

    def lower(self, x_BTI: Float[Array, "*batch I"], rows: RowContext | None) -> Float[Array, "*batch A R"]:
        """scale * x a of the adapter that each row uses, zero for the others."""
        a_AIR = self._whole(self.a)
        x_BTI = dropped(x_BTI.astype(self.dtype), self.dropout, rows, zlib.crc32(self.path.encode()))
        return self._chosen(jnp.einsum("...i,air->...ar", x_BTI, a_AIR), rows)

    def raise_rank(self, low_BTAR: Float[Array, "*batch A R"]) -> Float[Array, "*batch O"]:
        """low b, summed over adapters, of which at most one is not zero."""
        b_ARO = self._whole(self.b)
        return jnp.einsum("...ar,aro->...o", low_BTAR, b_ARO)

    def _chosen(self, low_BTAR: Array, rows: RowContext | None, *, scaled: bool = True) -> Array:
        """Every adapter's part, scaled; zero where the row uses another one."""
        count = len(self.scales)
        scales_A = jnp.asarray(self.scales if scaled else [1.0] * count, low_BTAR.dtype)
        if rows is None or rows.adapter_ids_B is None:
            if count > 1:
                scales_A = jnp.where(jnp.arange(count) == 0, scales_A, 0)
            return low_BTAR * scales_A[:, None]
        scales_BA = jnp.where(rows.adapter_ids_B[:, None] == jnp.arange(count), scales_A, 0)
        return low_BTAR * scales_BA.reshape(-1, *[1] * (low_BTAR.ndim - 3), count, 1)

    def factors(self, kernel_IO: Float[Array, "I O"]) -> Float[Array, "A O"]:
        """DoRA's factor on every output column: its trained length over the length that base and update have.

        The length is a constant in the backward pass (Liu et al. 2024, section 4.3).
        """
        assert self.magnitude is not None
        lengths_AO = column_lengths(kernel_IO, self.a.get_value(), self.b.get_value(), self.scales)
        return self.magnitude.get_value() / jax.lax.stop_gradient(lengths_AO)

    def chosen_factor(self, kernel_IO: Array, rows: RowContext | None) -> Array:
        """The factor of each row's adapter, [O] or [B, 1, O]; 1 where the base acts alone."""
        factors_AO = self.factors(kernel_IO)
        if rows is None or rows.adapter_ids_B is None:
            return factors_AO[0]
        used_BA1 = (rows.adapter_ids_B[:, None] == jnp.arange(len(self.scales)))[..., None]
        chosen_BO = jnp.where(used_BA1, factors_AO, 0).sum(axis=1)
        return jnp.where((rows.adapter_ids_B < 0)[:, None], 1.0, chosen_BO)[:, None]

    def extend(self, hidden_BTD: Float[Array, "*batch D"], rows: RowContext | None) -> Float[Array, "*batch E"]:
        """Hidden states with what `extend_kernel` multiplies behind them, so that the product of both is adapted.

        The output matrix is read in vocabulary chunks by the loss: in this form any product with it has each row's
        adapter and dropout in it, and the matrix itself is never changed. E = D + A R (DoRA: D + A D + A R).
        """
        low_BTAR = self.lower(hidden_BTD, rows)
        parts = [hidden_BTD, low_BTAR.reshape(*hidden_BTD.shape[:-1], -1).astype(hidden_BTD.dtype)]
        if self.magnitude is not None:
            used_BTAD = self._chosen(hidden_BTD[..., None, :], rows, scaled=False)
            parts.insert(1, used_BTAD.reshape(*hidden_BTD.shape[:-1], -1))
        return jnp.concatenate(parts, axis=-1)

    def extend_kernel(self, kernel_DV: Float[Array, "D V"]) -> Float[Array, "E V"]:
        """The output matrix with the second halves of the updates under it; see `extend`."""
        b_ARV = self._whole(self.b).astype(kernel_DV.dtype)
        if self.magnitude is None:
            return jnp.concatenate([kernel_DV, b_ARV.reshape(-1, kernel_DV.shape[1])])
        factors_AV = self.factors(kernel_DV)
        longer = [kernel_DV * (factors_V - 1.0).astype(kernel_DV.dtype) for factors_V in factors_AV]
        b_ARV = b_ARV * factors_AV[:, None].astype(b_ARV.dtype)
        return jnp.concatenate([kernel_DV, *longer, b_ARV.reshape(-1, kernel_DV.shape[1])])

    def transposed(self) -> "Adapter":
        """The update of the transposed matrix: that of a tied table where it makes logits."""
        a, b = (jnp.swapaxes(part.get_value(), -1, -2) for part in (self.b, self.a))
        axes = (self.axes[1], self.axes[0])
        return Adapter(
            a, b, None, axes=axes, scales=self.scales, dropout=self.dropout, dtype=self.dtype, path=self.path
        )

    def merged(self, kernel_IO: Float[Array, "*layers I O"], index: int = 0) -> Float[Array, "*layers I O"]:
        """The matrix with one adapter's update in it, float32; ValueError where there is no adapter of that number."""
        if not 0 <= index < len(self.scales):
            raise ValueError(f"there is no adapter {index} to merge: they are 0 to {len(self.scales) - 1}")
        a, b = self.a.get_value()[..., index, :, :], self.b.get_value()[..., index, :, :]
        product = jnp.matmul(a, b, precision="highest", preferred_element_type=jnp.float32)
        sum_IO = kernel_IO.astype(jnp.float32) + self.scales[index] * product
        if self.magnitude is None:
            return sum_IO
        length_O = jnp.sqrt(jnp.sum(jnp.square(sum_IO), axis=-2, keepdims=True))
        return sum_IO * (self.magnitude.get_value()[..., index, None, :] / length_O)

    def _whole(self, part: nnx.Param) -> Array:
        """One half in the compute dtype, whole over `fsdp`, as kernels are."""
        axes = [None if name == "embed" else name for name in part.get_metadata()["axes"]]
        return constrain(part.get_value().astype(self.dtype), axes)


def column_lengths(
    kernel_IO: Float[Array, "I O"],
    a_AIR: Float[Array, "A I R"],
    b_ARO: Float[Array, "A R O"],
    scales: tuple[float, ...],
) -> Float[Array, "A O"]:
    """Length of every column of W + s a b, without making the sum: |W|^2 + 2 s (a'W).b + s^2 (a'a b).b, float32."""
    w_IO, a_AIR, b_ARO = (value.astype(jnp.float32) for value in (kernel_IO, a_AIR, b_ARO))
    scales_A1 = jnp.asarray(scales, jnp.float32)[:, None]
    cross_AO = jnp.sum(jnp.einsum("air,io->aro", a_AIR, w_IO) * b_ARO, axis=1)
    own_AO = jnp.sum(jnp.einsum("air,aiq->arq", a_AIR, a_AIR) @ b_ARO * b_ARO, axis=1)
    squares_AO = jnp.sum(jnp.square(w_IO), axis=0) + 2 * scales_A1 * cross_AO + jnp.square(scales_A1) * own_AO
    return jnp.sqrt(jnp.maximum(squares_AO, jnp.finfo(jnp.float32).tiny))
