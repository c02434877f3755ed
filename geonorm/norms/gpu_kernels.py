"""Local Context Norm in Triton: four passes over memory forward, two and the sums of planes backward.

Windows are put together from two scans (van Herk, 1992; Gil and Werman, 1993): a line is cut into blocks as long as the
window; the window that begins at a cell is the rest of its block and the beginning of the next. Moments are merged by
Chan's formula, so nothing is ever subtracted from a larger sum. Forward all of it is float32; sums of planes on the way
back are float64.

Arguments are pointers to contiguous planes, or to maps with the strides named after them, and numbers. Triton does not
compile functions with Python's annotations.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merge(count_a, first_a, offset_a, square_a, count_b, first_b, offset_b, square_b):
    """Return the moments of two sets together: count, mean as first + offset, sum of squared deviations.

    Differences are taken of values near each other, so a constant added to all of them costs no digits.
    """
    count = count_a + count_b
    share = count_b / tl.maximum(count, 1.0)
    delta = ((first_b - first_a) + offset_b) - offset_a
    square = square_a + square_b + delta * delta * count_a * share
    offset = offset_a + delta * share
    # Nothing has no first value: the other set is all there is.
    first = tl.where(count_a > 0, first_a, first_b)
    offset = tl.where(count_a > 0, tl.where(count_b > 0, offset, offset_a), offset_b)
    square = tl.where(count_a > 0, tl.where(count_b > 0, square, square_a), square_b)
    return count, first, offset, square


@triton.jit
def group_moments(
    x,
    start,
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
    """Write mean (``start + mean``) and variance of the values of each group at each cell."""
    plane = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * block_cells + tl.arange(0, block_cells)
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
    tl.store(start + plane * cells + cell, first, mask=inside)
    tl.store(mean + plane * cells + cell, offset, mask=inside)
    tl.store(var + plane * cells + cell, square / group_size, mask=inside)


@triton.jit
def slide(
    start,
    mean,
    var,
    start_out,
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
    plane = tl.program_id(1).to(tl.int64)
    block = tl.program_id(2)
    line = (tl.program_id(0) * at_once + tl.arange(0, at_once))[:, None]
    step = tl.arange(0, wide)[None, :]
    given = plane * plane_in + line.to(tl.int64) * line_in

    cell = block * window + step - before
    inside = (step < window) & (cell >= 0) & (cell < length) & (line < lines)
    count = inside.to(tl.float32)
    first = tl.load(start + given + cell * along_in, mask=inside, other=0.0)
    offset = tl.load(mean + given + cell * along_in, mask=inside, other=0.0)
    square = tl.load(var + given + cell * along_in, mask=inside, other=0.0)
    count_a, first_a, offset_a, square_a = tl.associative_scan((count, first, offset, square), 1, merge, reverse=True)

    cell = cell + window - 1  # of the next block, one later: nothing at its first place
    inside = (step > 0) & (step < window) & (cell >= 0) & (cell < length) & (line < lines)
    count = inside.to(tl.float32)
    first = tl.load(start + given + cell * along_in, mask=inside, other=0.0)
    offset = tl.load(mean + given + cell * along_in, mask=inside, other=0.0)
    square = tl.load(var + given + cell * along_in, mask=inside, other=0.0)
    count_b, first_b, offset_b, square_b = tl.associative_scan((count, first, offset, square), 1, merge)

    count, first, offset, square = merge(count_a, first_a, offset_a, square_a, count_b, first_b, offset_b, square_b)
    out = block * window + step
    inside = (step < window) & (out < length_out) & (line < lines)
    place = plane * plane_out + line.to(tl.int64) * line_out + out * along_out
    tl.store(start_out + place, first, mask=inside)
    tl.store(mean_out + place, offset, mask=inside)
    tl.store(var_out + place, square / tl.maximum(count, 1.0), mask=inside)


@triton.jit
def normalize(
    x,
    y,
    start,
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
    y_sample,
    y_channel,
    y_row,
    y_col,
    group_size: tl.constexpr,
    keep: tl.constexpr,
    block_cells: tl.constexpr,
):
    """Normalize each cell by the nearest window."""
    plane = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * block_cells + tl.arange(0, block_cells)
    inside = cell < cells
    row, col = cell // width, cell % width
    window_row = tl.minimum(tl.maximum(row - before_rows, 0), rows_out - 1)
    window_col = tl.minimum(tl.maximum(col - before_cols, 0), cols_out - 1)
    there = (plane * rows_out + window_row) * cols_out + window_col
    middle = tl.load(mean + there, mask=inside, other=0.0)
    first = tl.load(start + there, mask=inside, other=0.0)
    rstd = tl.rsqrt(tl.load(var + there, mask=inside, other=1.0) + eps)
    if keep:
        tl.store(kept_mean + plane * cells + cell, first + middle, mask=inside)
        tl.store(kept_rstd + plane * cells + cell, rstd, mask=inside)
    channels = (plane % groups) * group_size
    place = (plane // groups) * x_sample + channels * x_channel + row.to(tl.int64) * x_row + col * x_col
    made_at = (plane // groups) * y_sample + channels * y_channel + row.to(tl.int64) * y_row + col * y_col
    for channel in tl.static_range(group_size):
        value = tl.load(x + place + channel * x_channel, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(weight + channels + channel).to(tl.float32)
        constant = tl.load(bias + channels + channel).to(tl.float32)
        made = ((value - first) - middle) * rstd * factor + constant
        tl.store(y + made_at + channel * y_channel, made.to(y.dtype.element_ty), mask=inside)


@triton.jit
def weigh(
    grad,
    x,
    mean,
    rstd,
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
    """Write ``r sum(g) - mean q`` and ``q`` in float64, and the sums of each block for weight and bias."""
    plane = tl.program_id(1).to(tl.int64)
    block = tl.program_id(0)
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
    q = (deviation * deviation * product).to(tl.float64)
    p = (deviation * total).to(tl.float64) - middle.to(tl.float64) * q
    tl.store(of_var + plane * cells + cell, q, mask=inside)
    tl.store(of_mean + plane * cells + cell, p, mask=inside)


@triton.jit
def pass_on(
    grad,
    x,
    grad_x,
    mean,
    rstd,
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
    y_sample,
    y_channel,
    y_row,
    y_col,
    group_size: tl.constexpr,
    block_cells: tl.constexpr,
):
    """Write ``g r - box(of_mean) - x box(of_var)``, the boxes being given in float64."""
    plane = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * block_cells + tl.arange(0, block_cells)
    inside = cell < cells
    row, col = (cell // width).to(tl.int64), cell % width
    first = (plane % groups) * group_size
    place = (plane // groups) * x_sample + first * x_channel + row * x_row + col * x_col
    given = (plane // groups) * g_sample + first * g_channel + row * g_row + col * g_col
    deviation = tl.load(rstd + plane * cells + cell, mask=inside, other=0.0)
    middle = tl.load(mean + plane * cells + cell, mask=inside, other=0.0)
    box = tl.load(of_var + plane * cells + cell, mask=inside, other=0.0)
    constant = (tl.load(of_mean + plane * cells + cell, mask=inside, other=0.0) + middle.to(tl.float64) * box).to(
        tl.float32
    )
    slope = box.to(tl.float32)
    made_at = (plane // groups) * y_sample + first * y_channel + row * y_row + col * y_col
    for channel in tl.static_range(group_size):
        upstream = tl.load(grad + given + channel * g_channel, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + place + channel * x_channel, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(weight + first + channel).to(tl.float32)
        made = upstream * factor * deviation - constant - (value - middle) * slope
        tl.store(grad_x + made_at + channel * y_channel, made.to(grad_x.dtype.element_ty), mask=inside)
