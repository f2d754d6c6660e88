"""Mamba's selective scan (Gu and Dao, 2023, arXiv:2312.00752) in chunks: fast without kernels, and exact when it goes on.

transformers' own path in plain torch holds all states of a sequence at once, takes several operations a token, lets
autograd keep every step, and starts from nothing when it is given several tokens and a cache. Here a chunk of states is
held at a time, a token costs one operation, the backward pass computes a chunk's states again, and the scan goes on from
any state.
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers import Cache, PreTrainedModel
from transformers.integrations.accelerate import force_accelerate_hooks
from transformers.models.mamba.modeling_mamba import MambaMixer, apply_mask_to_padding_states
from transformers.utils.import_utils import is_mamba_ssm_available

# Tokens in a chunk. On a CPU its states should stay in the cache; elsewhere few large operations go faster.
CPU_CHUNK_LENGTH = 16
CHUNK_LENGTH = 256


def selective_scan(
    hidden_states: torch.Tensor,
    time_steps: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    chunk_length: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `state[t] = exp(time_steps[t] · A) · state[t − 1] + time_steps[t] · B[t] · hidden_states[t]`, read out by `C[t]`.

    Memory beside the arguments and the result: a chunk of states, and for the backward pass one state a chunk.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, length, channels)`): what is scanned, at least one token.
        time_steps (`torch.Tensor` of shape `(batch_size, length, channels)`): positive.
        A (`torch.Tensor` of shape `(channels, state_size)`): negative.
        B (`torch.Tensor` of shape `(batch_size, length, state_size)`): how the input goes into the state.
        C (`torch.Tensor` of shape `(batch_size, length, state_size)`): how the output is read from it.
        initial_state (`torch.Tensor` of shape `(batch_size, channels, state_size)`, *optional*): before the first token;
            nothing by default.
        chunk_length (`int`, *optional*): tokens whose states are held at once; by default what suits the device.

    Returns:
        Output `(batch_size, length, channels)` and the last state `(batch_size, channels, state_size)`.
    """
    if initial_state is None:
        initial_state = hidden_states.new_zeros(len(hidden_states), *A.shape)
    if chunk_length is None:
        chunk_length = CPU_CHUNK_LENGTH if hidden_states.is_cpu else CHUNK_LENGTH
    # Time comes first, so that the states of one token lie together, and channels last, the longest axis.
    by_time = (x.transpose(0, 1).contiguous() for x in (hidden_states, time_steps, B, C))
    outputs, state = _SelectiveScan.apply(*by_time, A.t().contiguous(), initial_state.mT.contiguous(), chunk_length)
    return outputs.transpose(0, 1), state.mT


class _SelectiveScan(torch.autograd.Function):
    """`selective_scan` of `(length, batch_size, …)`, with `(state_size, channels)` for A and the states."""

    @staticmethod
    def forward(ctx, inputs, steps, B, C, A, initial_state, chunk_length):
        outputs = torch.empty_like(inputs)
        decays, states = _buffers(2, inputs, A, chunk_length)
        state, states_before = initial_state, []
        for begin in range(0, len(inputs), chunk_length):
            chunk = slice(begin, begin + chunk_length)
            states_before.append(state)
            _, kept = _chunk_states(inputs[chunk], steps[chunk], B[chunk], A, state, decays, states)
            outputs[chunk] = (C[chunk].unsqueeze(-2) @ kept).squeeze(-2)
            state = kept[-1].clone()
        ctx.chunk_length = chunk_length
        ctx.save_for_backward(inputs, steps, B, C, A, *states_before)
        return outputs, state

    @staticmethod
    @once_differentiable
    def backward(ctx, outputs_grad, state_grad):
        inputs, steps, B, C, A, *states_before = ctx.saved_tensors
        inputs_grad, steps_grad, B_grad, C_grad = (torch.empty_like(x) for x in (inputs, steps, B, C))
        A_grad = torch.zeros_like(A)
        buffers = _buffers(4, inputs, A, ctx.chunk_length)
        for index in reversed(range(len(states_before))):
            chunk = slice(index * ctx.chunk_length, (index + 1) * ctx.chunk_length)
            u, dt, out_grad, before = inputs[chunk], steps[chunk], outputs_grad[chunk], states_before[index]
            decays, states = _chunk_states(u, dt, B[chunk], A, before, *buffers[:2])
            grads, product = buffers[2, : len(u)], buffers[3, : len(u)]
            C_grad[chunk] = torch.mul(states, out_grad.unsqueeze(-2), out=product).sum(-1)

            # The gradient of each state: by its own output, and by the next state.
            torch.mul(out_grad.unsqueeze(-2), C[chunk].unsqueeze(-1), out=grads)
            grads[-1] += state_grad
            _scan_(decays, grads, reverse=True)
            state_grad = decays[0] * grads[0]

            B_grad[chunk] = torch.mul(grads, (dt * u).unsqueeze(-2), out=product).sum(-1)
            scaled_grad = (B[chunk].unsqueeze(-2) @ grads).squeeze(-2)  # of steps · inputs
            exponents_grad = decays.mul_(grads)  # of steps · A
            exponents_grad[1:] *= states[:-1]
            exponents_grad[0] *= before
            A_grad += torch.mul(exponents_grad, dt.unsqueeze(-2), out=product).sum((0, 1))
            steps_grad[chunk] = torch.mul(exponents_grad, A, out=product).sum(-2) + scaled_grad * u
            inputs_grad[chunk] = scaled_grad * dt
        return inputs_grad, steps_grad, B_grad, C_grad, A_grad, state_grad, None


def _buffers(number: int, inputs: torch.Tensor, A: torch.Tensor, chunk_length: int) -> torch.Tensor:
    """Room for so many tensors of a chunk's states, used again for each chunk: fresh memory costs as much as the work."""
    return inputs.new_empty(number, min(chunk_length, len(inputs)), inputs.shape[1], *A.shape)


def _chunk_states(
    inputs: torch.Tensor,
    steps: torch.Tensor,
    B: torch.Tensor,
    A: torch.Tensor,
    before: torch.Tensor,
    decays: torch.Tensor,
    states: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decay and state `(K, N, state_size, channels)` of each of a chunk's tokens, in the given buffers."""
    decays, states = decays[: len(inputs)], states[: len(inputs)]
    torch.mul(steps.unsqueeze(-2), A / math.log(2), out=decays).exp2_()  # on a CPU twice as fast as exp
    torch.mul((steps * inputs).unsqueeze(-2), B.unsqueeze(-1), out=states)
    states[0].addcmul_(decays[0], before)
    _scan_(decays, states)
    return decays, states


def _scan_(decays: torch.Tensor, values: torch.Tensor, reverse: bool = False) -> None:
    """In place, one after the other, `values[t] += decays[t] · values[t − 1]`, or in reverse
    `values[t] += decays[t + 1] · values[t + 1]`."""
    if not values.is_cpu:
        return _scan_by_doubling_(decays, values, reverse)
    decays, values = decays.unbind(0), values.unbind(0)
    for t in range(1, len(values)):
        if reverse:
            values[-t - 1].addcmul_(decays[-t], values[-t])
        else:
            values[t].addcmul_(decays[t], values[t - 1])


def _scan_by_doubling_(decays: torch.Tensor, values: torch.Tensor, reverse: bool) -> None:
    """The same in log₂ of the length as many operations (Hillis and Steele, 1986), for devices that wait for the next."""
    reach, products = 1, decays[1:]
    while reach < len(values):
        if reverse:
            values[:-reach] += products * values[reach:]
        else:
            values[reach:] += products * values[:-reach]
        products = products[reach:] * products[:-reach]
        reach *= 2


class ScanMambaMixer(MambaMixer):
    """transformers' mixer with the scan of this file; the parameters are the same."""

    @force_accelerate_hooks(["conv1d", "dt_proj"])
    def forward(
        self,
        hidden_states: torch.Tensor,
        cache_params: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, length, hidden_size)`): the block's input.
            cache_params (`Cache`, *optional*): state to go on from, advanced in place.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 at padding.
            **kwargs: for mamba_ssm's kernels, where they are installed.

        Returns:
            `torch.Tensor` of the shape of `hidden_states`.
        """
        if cache_params is None and hidden_states.is_cuda and is_mamba_ssm_available():
            return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)  # its kernels
        dtype, length = hidden_states.dtype, hidden_states.shape[1]
        exact = torch.promote_types(dtype, torch.float32)  # of the scan
        hidden_states = apply_mask_to_padding_states(hidden_states, attention_mask)
        inputs, gate = self.in_proj(hidden_states).chunk(2, dim=-1)  # (N, L, channels) each

        reach = self.conv_kernel_size - 1  # earlier tokens that the convolution sees
        state = None
        if cache_params is None:
            inputs = F.pad(inputs, (0, 0, reach, 0))
        else:
            recurrent = cache_params.get_recurrent_state(self.layer_idx, state_idx=0)
            state = None if recurrent is None else recurrent.to(exact)
            seen = cache_params.update_conv_state(inputs.mT, self.layer_idx, conv_kernel_size=self.conv_kernel_size).mT
            inputs = F.pad(seen, (0, 0, max(0, length + reach - seen.shape[1]), 0))[:, -(length + reach) :]
        kernel = self.conv1d.weight.squeeze(1).t().contiguous()  # (kernel, channels), the longest axis last
        bias = inputs.new_zeros(()) if self.conv1d.bias is None else self.conv1d.bias
        convolved = torch.addcmul(bias, inputs[:, :length], kernel[0])
        for k in range(1, reach + 1):
            convolved.addcmul_(inputs[:, k : k + length], kernel[k])
        inputs = apply_mask_to_padding_states(self.act(convolved), attention_mask)

        time_steps, B, C = self.x_proj(inputs).split(
            [self.time_step_rank, self.ssm_state_size, self.ssm_state_size], dim=-1
        )
        time_steps = F.linear(time_steps, self.dt_proj.weight).to(exact) + self.dt_proj.bias.to(exact)
        outputs, state = selective_scan(
            inputs.to(exact), F.softplus(time_steps), -self.A_log.to(exact).exp(), B.to(exact), C.to(exact), state
        )
        if cache_params is not None:
            cache_params.update_recurrent_state(state, self.layer_idx)
        outputs = torch.addcmul(outputs, inputs.to(exact), self.D.to(exact)) * F.silu(gate)
        return self.out_proj(outputs.to(dtype))


def with_exact_scan(model: PreTrainedModel) -> PreTrainedModel:
    """Gives a Mamba the mixers of this file, in place; any other model is returned as it is."""
    for module in model.modules():
        if type(module) is MambaMixer:
            module.__class__ = ScanMambaMixer  # the parameters, their names and their hooks stay
    return model


__all__ = ["ScanMambaMixer", "selective_scan", "with_exact_scan"]
