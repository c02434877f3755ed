"""Local Context Norm in Triton: four passes over memory forward, two and the sums of planes backward.

Windows are put together from two scans (van Herk, 1992; Gil and Werman, 1993): a line is cut into blocks as long as the
window; the window that begins at a cell is the rest of its block and the beginning of the next. Moments are merged by
Chan's formula, so nothing is ever subtracted from a larger sum; all of it is float32.

Arguments are pointers to contiguous planes, or to maps with the strides named after them, and numbers. Triton does not
compile functions with Python's annotations.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merge(count_a, mean_a, square_a, count_b, mean_b, square_b):
    """Return count, mean and sum of squared deviations of two sets together."""
    count = count_a + count_b
    share = count_b / tl.maximum(count, 1.0)
    delta = mean_b - mean_a
    return count, mean_a + delta * share, square_a + square_b + delta * delta * count_a * share


@triton.jit
def level_of(x, plane, groups, x_sample, x_channel, group_size: tl.constexpr):
    """Return the first value of a group's map, 0 if that is not finite: means count from there."""
    value = tl.load(x + (plane // groups) * x_sample + (plane % groups) * group_size * x_channel).to(tl.float32)
    return tl.where(value - value == 0.0, value, 0.0)


@triton.jit
def group_moments(
    x,
    mean,
    var,
    groups,
    cells,
    width,
    x_sample,
    x_channel,
    x_row,
    x_col,
    group_size: tl.constexpr,
    block_cells: tl.constexpr,
):
    """Write mean, counted from the level of its group, and variance of the values of each group at each cell."""
    plane = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * block_cells + tl.arange(0, block_cells)
    inside = cell < cells
    place = (plane // groups) * x_sample + (plane % groups) * group_size * x_channel
    place += (cell // width).to(tl.int64) * x_row + (cell % width) * x_col
    first = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    offset = tl.zeros_like(first)
    for channel in tl.static_range(1, group_size):
        offset += tl.load(x + place + channel * x_channel, mask=inside, other=0.0).to(tl.float32) - first
    offset /= group_size
    square = offset * offset
    for channel in tl.static_range(1, group_size):
        value = tl.load(x + place + channel * x_channel, mask=inside, other=0.0).to(tl.float32)
        deviation = (value - first) - offset
        square += deviation * deviation
    level = level_of(x, plane, groups, x_sample, x_channel, group_size)
    tl.store(mean + plane * cells + cell, (first - level) + offset, mask=inside)
    tl.store(var + plane * cells + cell, square / group_size, mask=inside)


@triton.jit
def slide(
    mean,
    var,
    mean_out,
    var_out,
    lines,
    length,
    length_out,
    window,
    before,
    plane_in,
    line_in,
    along_in,
    plane_out,
    line_out,
    along_out,
    at_once: tl.constexpr,
    wide: tl.constexpr,
):
    """Write the moments of the windows along one axis; the first begins ``before`` cells outside."""
    plane = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    line = (tl.program_id(2) * at_once + tl.arange(0, at_once))[:, None]
    step = tl.arange(0, wide)[None, :]
    given = plane * plane_in + line.to(tl.int64) * line_in

    cell = block * window + step - before
    inside = (step < window) & (cell >= 0) & (cell < length) & (line < lines)
    count = inside.to(tl.float32)
    middle = tl.load(mean + given + cell * along_in, mask=inside, other=0.0)
    square = tl.load(var + given + cell * along_in, mask=inside, other=0.0)
    count_a, mean_a, square_a = tl.associative_scan((count, middle, square), 1, merge, reverse=True)

    cell = cell + window - 1  # of the next block, one later: nothing at its first place
    inside = (step > 0) & (step < window) & (cell >= 0) & (cell < length) & (line < lines)
    count = inside.to(tl.float32)
    middle = tl.load(mean + given + cell * along_in, mask=inside, other=0.0)
    square = tl.load(var + given + cell * along_in, mask=inside, other=0.0)
    count_b, mean_b, square_b = tl.associative_scan((count, middle, square), 1, merge)

    count, middle, square = merge(count_a, mean_a, square_a, count_b, mean_b, square_b)
    out = block * window + step
    inside = (step < window) & (out < length_out) & (line < lines)
    place = plane * plane_out + line.to(tl.int64) * line_out + out * along_out
    tl.store(mean_out + place, middle, mask=inside)
    tl.store(var_out + place, square / tl.maximum(count, 1.0), mask=inside)


@triton.jit
def normalize(
    x,
    y,
    mean,
    var,
    kept_mean,
    kept_rstd,
    weight,
    bias,
    eps,
    groups,
    cells,
    width,
    rows_out,
    cols_out,
    before_rows,
    before_cols,
    x_sample,
    x_channel,
    x_row,
    x_col,
    group_size: tl.constexpr,
    keep: tl.constexpr,
    block_cells: tl.constexpr,
):
    """Normalize each cell by the nearest window; ``y`` has the strides of ``x``."""
    plane = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * block_cells + tl.arange(0, block_cells)
    inside = cell < cells
    row, col = cell // width, cell % width
    window_row = tl.minimum(tl.maximum(row - before_rows, 0), rows_out - 1)
    window_col = tl.minimum(tl.maximum(col - before_cols, 0), cols_out - 1)
    there = (plane * rows_out + window_row) * cols_out + window_col
    middle = tl.load(mean + there, mask=inside, other=0.0)
    level = level_of(x, plane, groups, x_sample, x_channel, group_size)
    rstd = tl.rsqrt(tl.load(var + there, mask=inside, other=1.0) + eps)
    if keep:
        tl.store(kept_mean + plane * cells + cell, level + middle, mask=inside)
        tl.store(kept_rstd + plane * cells + cell, rstd, mask=inside)
    first = (plane % groups) * group_size
    place = (plane // groups) * x_sample + first * x_channel + row.to(tl.int64) * x_row + col * x_col
    for channel in tl.static_range(group_size):
        value = tl.load(x + place + channel * x_channel, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(weight + first + channel).to(tl.float32)
        constant = tl.load(bias + first + channel).to(tl.float32)
        made = ((value - level) - middle) * rstd * factor + constant
        tl.store(y + place + channel * x_channel, made.to(y.dtype.element_ty), mask=inside)


@triton.jit
def weigh(
    grad,
    x,
    mean,
    rstd,
    level,
    weight,
    of_mean,
    of_var,
    sums,
    groups,
    cells,
    width,
    blocks,
    x_sample,
    x_channel,
    x_row,
    x_col,
    g_sample,
    g_channel,
    g_row,
    g_col,
    group_size: tl.constexpr,
    block_cells: tl.constexpr,
):
    """Write ``r sum(g) - (mean - level) q`` and ``q``, and the sums of each block for weight and bias."""
    plane = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    cell = block * block_cells + tl.arange(0, block_cells)
    inside = cell < cells
    row, col = (cell // width).to(tl.int64), cell % width
    first = (plane % groups) * group_size
    place = (plane // groups) * x_sample + first * x_channel + row * x_row + col * x_col
    given = (plane // groups) * g_sample + first * g_channel + row * g_row + col * g_col
    middle = tl.load(mean + plane * cells + cell, mask=inside, other=0.0)
    deviation = tl.load(rstd + plane * cells + cell, mask=inside, other=0.0)
    total = tl.zeros_like(middle)
    product = tl.zeros_like(middle)
    for channel in tl.static_range(group_size):
        upstream = tl.load(grad + given + channel * g_channel, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + place + channel * x_channel, mask=inside, other=0.0).to(tl.float32)
        normal = upstream * ((value - middle) * deviation)
        factor = tl.load(weight + first + channel).to(tl.float32)
        total += upstream * factor
        product += normal * factor
        at = ((plane * group_size + channel) * blocks + block) * 2
        tl.store(sums + at, tl.sum(tl.where(inside, normal, 0.0), axis=0))
        tl.store(sums + at + 1, tl.sum(tl.where(inside, upstream, 0.0), axis=0))
    q = deviation * deviation * product
    tl.store(of_var + plane * cells + cell, q, mask=inside)
    tl.store(of_mean + plane * cells + cell, deviation * total - (middle - tl.load(level + plane)) * q, mask=inside)


@triton.jit
def pass_on(
    grad,
    x,
    grad_x,
    rstd,
    level,
    of_mean,
    of_var,
    weight,
    groups,
    cells,
    width,
    x_sample,
    x_channel,
    x_row,
    x_col,
    g_sample,
    g_channel,
    g_row,
    g_col,
    group_size: tl.constexpr,
    block_cells: tl.constexpr,
):
    """Write ``g r - box(of_mean) - (x - level) box(of_var)``; ``grad_x`` has the strides of ``x``."""
    plane = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * block_cells + tl.arange(0, block_cells)
    inside = cell < cells
    row, col = (cell // width).to(tl.int64), cell % width
    first = (plane % groups) * group_size
    place = (plane // groups) * x_sample + first * x_channel + row * x_row + col * x_col
    given = (plane // groups) * g_sample + first * g_channel + row * g_row + col * g_col
    deviation = tl.load(rstd + plane * cells + cell, mask=inside, other=0.0)
    constant = tl.load(of_mean + plane * cells + cell, mask=inside, other=0.0)
    slope = tl.load(of_var + plane * cells + cell, mask=inside, other=0.0)
    middle = tl.load(level + plane)
    for channel in tl.static_range(group_size):
        upstream = tl.load(grad + given + channel * g_channel, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + place + channel * x_channel, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(weight + first + channel).to(tl.float32)
        made = upstream * factor * deviation - constant - (value - middle) * slope
        tl.store(grad_x + place + channel * x_channel, made.to(grad_x.dtype.element_ty), mask=inside)
