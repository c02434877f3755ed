"""Local Context Norm in compiled loops: each group is read twice, once for its sums and once to normalize.

For each row the values of a group and their squares are summed in float64, slid over the columns, and handed to
rings of rows that slide over the rows: about two windows of rows are kept, for one group (channels last: for all).
Sums of 4, 16, 64, ... cells are made from four of the next smaller, and those the window's length names in base 4 are
added, the largest first: additions whose order depends on the window alone. A crop therefore gives bit for bit what the
whole map gives, at the cells whose windows lie inside it. A running sum would not, and would carry one NaN to the end
of the row.

float64 keeps seven digits of a variance up to a ratio of mean and deviation of 30,000; beyond, fewer, as float32 itself
holds fewer of the deviation.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

NOTHING, MEAN_AND_RSTD, MEAN_AND_VAR = range(3)
"""What `forward` keeps of the statistics."""

ROW_VALUES = 2048
"""Values in a step of the loops: enough to hide what a call costs, few enough for the fastest cache."""

compiled = njit(nogil=True, cache=True, error_model="numpy")
# Sums of the gradients of weight and bias: the one place where the order of additions is left to the compiler.
compiled_sums = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})


@compiled
def forward(
    x: Floats,
    y: Floats,
    mean: Floats,
    spread: Floats,
    weight: Floats,
    bias: Floats,
    rows: tuple[int, int],
    cols: tuple[int, int],
    eps: float,
    keep: int,
    part: tuple[int, int, int, int],
) -> None:
    """Normalize some rows of some groups, and write their mean and spread where ``keep`` asks for it.

    Args:
        x: Maps, ``(samples * groups, group_size, H, W)``.
        y: As x; one without rows: nothing is normalized.
        mean: ``(samples * groups, H, W)``, or any other where nothing is kept.
        spread: As mean: reciprocal deviation or variance.
        weight: ``(groups, group_size)``.
        bias: As weight.
        rows: Length of the window along the rows, and 1 if it is cut at the border, 0 if it moves inward.
        cols: The same along the columns.
        eps: Added to the variance.
        keep: `NOTHING`, `MEAN_AND_RSTD` or `MEAN_AND_VAR`.
        part: First and last but one group, first and last but one row, to do.
    """
    group_size, height, width = x.shape[1:]
    window, cut = rows
    head = 0 if cols[1] else (cols[0] - 1) // 2
    span = width + cols[0] - 1 if cols[1] else width  # columns of a row with what is added around it
    slid = span - cols[0] + 1
    margin = (cols[0] - 1) // 2 if cols[1] else 0

    across, down = _plan(cols[0]), _plan(window)
    pitch, step, runs, stride, ring, offsets, sizes, out, starts = _space(across, down, span, 1)
    share = _share(cols, width, group_size)
    planes = np.empty((3, width), np.float32)

    first_start = _start_of(part[2], window, height, cut)
    num_rows = _start_of(part[3] - 1, window, height, cut) - first_start + window

    for index in range(part[0], part[1]):
        maps = x[index]
        group = index % weight.shape[0]
        for begin in range(0, num_rows, step):
            count = min(step, num_rows - begin)
            for row in range(count):
                source = first_start + begin + row
                at = row * 2 * pitch
                if 0 <= source < height:
                    sums = runs[at + margin : at + margin + width]
                    squares = runs[at + pitch + margin : at + pitch + margin + width]
                    _sum_group(maps, source, sums, squares)
                    runs[at : at + margin] = 0
                    runs[at + pitch : at + pitch + margin] = 0
                    runs[at + margin + width : at + pitch] = 0
                    runs[at + pitch + margin + width : at + 2 * pitch] = 0
                else:
                    runs[at : at + 2 * pitch] = 0
            fresh = (offsets[0] + begin % sizes[0]) * 2 * pitch
            _slide_across(ring[fresh : fresh + count * 2 * pitch], runs, stride, across, starts, 1)
            _push(ring, 2 * pitch, offsets, sizes, begin, count, starts)
            skipped = max(0, window - 1 - begin)
            if skipped >= count:
                continue
            _pull(out, ring, 2 * pitch, offsets, sizes, down, begin + skipped, count - skipped, starts)
            for row in range(count - skipped):
                start = first_start + begin + skipped + row - window + 1
                at = row * 2 * pitch
                above = min(start + window, height) - max(start, 0) if cut else window
                _moments(
                    out[at : at + slid],
                    out[at + pitch : at + pitch + slid],
                    share,
                    1.0 / above,
                    np.float32(eps),
                    planes[0, head : head + slid],
                    planes[1, head : head + slid],
                    planes[2, head : head + slid],
                    keep == MEAN_AND_VAR,
                )
                if slid < width:
                    for plane in range(3):
                        planes[plane, :head] = planes[plane, head]
                        planes[plane, head + slid :] = planes[plane, head + slid - 1]
                first, end = _served(start, window, height, cut)
                for cell in range(max(first, part[2]), min(end, part[3])):
                    if keep != NOTHING:
                        mean[index, cell] = planes[0]
                        spread[index, cell] = planes[2]
                    if y.shape[2]:
                        for channel in range(group_size):
                            _normalize(
                                maps[channel, cell],
                                y[index, channel, cell],
                                planes[0],
                                planes[1],
                                planes[2],
                                weight[group, channel],
                                bias[group, channel],
                            )


@compiled
def forward_channels_last(
    x: Floats,
    y: Floats,
    mean: Floats,
    spread: Floats,
    weight: Floats,
    bias: Floats,
    rows: tuple[int, int],
    cols: tuple[int, int],
    eps: float,
    keep: int,
    part: tuple[int, int, int, int],
) -> None:
    """Do what `forward` does to maps ``(samples, H, W, channels)``: all groups of a row at once, beside each other.

    Args:
        x: Maps, ``(samples, H, W, channels)``.
        y: As x; one without rows: nothing is normalized.
        mean: ``(samples, groups, H, W)``, or any other where nothing is kept.
        spread: As mean.
        weight: ``(groups, group_size)``, as is bias.
        bias: See there.
        rows: As for `forward`, as are cols, eps and keep.
        cols: See there.
        eps: See there.
        keep: See there.
        part: First and last but one sample, first and last but one row, to do.
    """
    height, width, channels = x.shape[1:]
    groups, group_size = weight.shape
    window, cut = rows
    head = 0 if cols[1] else (cols[0] - 1) // 2
    span = width + cols[0] - 1 if cols[1] else width
    slid = span - cols[0] + 1
    margin = (cols[0] - 1) // 2 if cols[1] else 0

    across, down = _plan(cols[0]), _plan(window)
    pitch, step, runs, stride, ring, offsets, sizes, out, starts = _space(across, down, span, groups)
    share = np.repeat(_share(cols, width, group_size), groups)
    planes = np.empty((3, width * groups), np.float32)
    piece = max(1, ROW_VALUES // channels)  # cells normalized together
    wide = np.empty((5, piece * channels), np.float32)
    for cell in range(piece):
        wide[3, cell * channels : (cell + 1) * channels] = weight.ravel()
        wide[4, cell * channels : (cell + 1) * channels] = bias.ravel()

    first_start = _start_of(part[2], window, height, cut)
    num_rows = _start_of(part[3] - 1, window, height, cut) - first_start + window
    inside = slice(margin * groups, (margin + width) * groups)
    lanes = slice(head * groups, (head + slid) * groups)

    for sample in range(part[0], part[1]):
        for begin in range(0, num_rows, step):
            count = min(step, num_rows - begin)
            for row in range(count):
                source = first_start + begin + row
                sums = runs[row * 2 * pitch : (row * 2 + 1) * pitch]
                squares = runs[(row * 2 + 1) * pitch : (row * 2 + 2) * pitch]
                sums[:] = 0
                squares[:] = 0
                if 0 <= source < height:
                    _sum_neighbours(x[sample, source].ravel(), sums[inside], squares[inside], group_size)
            fresh = (offsets[0] + begin % sizes[0]) * 2 * pitch
            _slide_across(ring[fresh : fresh + count * 2 * pitch], runs, stride, across, starts, groups)
            _push(ring, 2 * pitch, offsets, sizes, begin, count, starts)
            skipped = max(0, window - 1 - begin)
            if skipped >= count:
                continue
            _pull(out, ring, 2 * pitch, offsets, sizes, down, begin + skipped, count - skipped, starts)
            for row in range(count - skipped):
                start = first_start + begin + skipped + row - window + 1
                at = row * 2 * pitch
                above = min(start + window, height) - max(start, 0) if cut else window
                _moments(
                    out[at : at + slid * groups],
                    out[at + pitch : at + pitch + slid * groups],
                    share,
                    1.0 / above,
                    np.float32(eps),
                    planes[0, lanes],
                    planes[1, lanes],
                    planes[2, lanes],
                    keep == MEAN_AND_VAR,
                )
                for plane in range(3):
                    line = planes[plane]
                    for cell in range(head):
                        line[cell * groups : (cell + 1) * groups] = line[lanes][:groups]
                    for cell in range(head + slid, width):
                        line[cell * groups : (cell + 1) * groups] = line[lanes][(slid - 1) * groups :]
                first, end = _served(start, window, height, cut)
                for cell in range(max(first, part[2]), min(end, part[3])):
                    if keep != NOTHING:
                        for group in range(groups):
                            mean[sample, group, cell] = planes[0, group::groups]
                            spread[sample, group, cell] = planes[2, group::groups]
                    if y.shape[1]:
                        _normalize_neighbours(
                            x[sample, cell].ravel(), y[sample, cell].ravel(), planes, wide, piece * groups, group_size
                        )


@compiled
def backward(
    grad: Floats,
    x: Floats,
    mean: Floats,
    rstd: Floats,
    weight: Floats,
    grad_x: Floats,
    grad_weight: Doubles,
    grad_bias: Doubles,
    rows: tuple[int, int],
    cols: tuple[int, int],
    part: tuple[int, int],
) -> None:
    """Write the gradient of x for some groups, and of weight and bias for each map of these.

    With ``g = grad * weight``, ``z`` the normalized values, ``r`` the reciprocal deviation, sums over the group's
    channels, and ``box`` the sum over the windows that hold a cell, divided by their number of values:
    ``dx = g r - box(r sum(g) - mean q) - x box(q)``, ``q = r^2 sum(g z)``.

    Args:
        grad: Gradient of y, shape of x.
        x: As for `forward`, as are mean, rows, cols and weight.
        mean: Kept by `forward`.
        rstd: Kept by `forward`.
        weight: ``(groups, group_size)``.
        grad_x: As x.
        grad_weight: ``(samples * groups, group_size)``.
        grad_bias: As grad_weight.
        rows: As for `forward`.
        cols: As for `forward`.
        part: First and last but one group to do.
    """
    group_size, height, width = x.shape[1:]
    window, cut = rows
    before = (window - 1) // 2
    full = height if cut else height - window + 1
    delay = before if cut else 0  # rows between the newest that came in and the newest that goes out

    span = width + cols[0] - 1
    across, down = _plan(cols[0]), _plan(window)
    pitch, step, runs, stride, ring, offsets, sizes, out, starts = _space(across, down, span, 1)
    share = _share(cols, width, group_size)
    sums = np.empty((2, width), np.float32)
    gathered = np.empty((2, width))
    planes = np.empty((2, width), np.float32)

    for index in range(part[0], part[1]):
        group = index % weight.shape[0]
        grad_weight[index] = 0
        grad_bias[index] = 0
        ring[:] = 0
        num_rows = height + delay
        for begin in range(0, num_rows, step):
            count = min(step, num_rows - begin)
            for row in range(count):
                source = begin + row
                at = row * 2 * pitch
                runs[at : at + 2 * pitch] = 0
                if source >= full:
                    continue
                gathered[:] = 0
                first, end = _served(source - before if cut else source, window, height, cut)
                for cell in range(first, end):
                    for channel in range(group_size):
                        of_weight, of_bias = _weigh(
                            grad[index, channel, cell],
                            x[index, channel, cell],
                            mean[index, cell],
                            rstd[index, cell],
                            weight[group, channel],
                            sums[0],
                            sums[1],
                            channel == 0,
                        )
                        grad_weight[index, channel] += of_weight
                        grad_bias[index, channel] += of_bias
                    above = min(cell - before + window, height) - max(cell - before, 0) if cut else window
                    _gather(sums, mean[index, cell], rstd[index, cell], share, 1.0 / above, gathered)
                for plane in range(2):
                    _spread_out(gathered[plane], runs[at + plane * pitch : at + (plane + 1) * pitch], cols)
            fresh = (offsets[0] + begin % sizes[0]) * 2 * pitch
            _slide_across(ring[fresh : fresh + count * 2 * pitch], runs, stride, across, starts, 1)
            _push(ring, 2 * pitch, offsets, sizes, begin, count, starts)
            _pull(out, ring, 2 * pitch, offsets, sizes, down, begin, count, starts)
            for row in range(count):
                cell = begin + row - delay
                if cell < 0:
                    continue
                at = row * 2 * pitch
                _level(out[at : at + width], out[at + pitch : at + pitch + width], mean[index, cell], planes)
                for channel in range(group_size):
                    _pass_on(
                        grad[index, channel, cell],
                        x[index, channel, cell],
                        mean[index, cell],
                        rstd[index, cell],
                        planes[0],
                        planes[1],
                        weight[group, channel],
                        grad_x[index, channel, cell],
                    )


# --- one row of one group ---------------------------------------------------------------------------


@compiled
def _sum_group(maps: Floats, row: int, sums: Doubles, squares: Doubles) -> None:
    if maps.shape[0] == 4:
        one, two, three, four = maps[0, row], maps[1, row], maps[2, row], maps[3, row]
        for col in range(sums.shape[0]):
            a, b = np.float64(one[col]), np.float64(two[col])
            c, d = np.float64(three[col]), np.float64(four[col])
            sums[col] = (a + b) + (c + d)
            squares[col] = (a * a + b * b) + (c * c + d * d)
        return
    line = maps[0, row]
    for col in range(sums.shape[0]):
        value = np.float64(line[col])
        sums[col] = value
        squares[col] = value * value
    for channel in range(1, maps.shape[0]):
        line = maps[channel, row]
        for col in range(sums.shape[0]):
            value = np.float64(line[col])
            sums[col] += value
            squares[col] += value * value


@compiled
def _sum_neighbours(values: Floats, sums: Doubles, squares: Doubles, group_size: int) -> None:
    """Sum each group of neighbouring values, and their squares."""
    if group_size == 4:
        for place in range(sums.shape[0]):
            a, b = np.float64(values[4 * place]), np.float64(values[4 * place + 1])
            c, d = np.float64(values[4 * place + 2]), np.float64(values[4 * place + 3])
            sums[place] = (a + b) + (c + d)
            squares[place] = (a * a + b * b) + (c * c + d * d)
        return
    for place in range(sums.shape[0]):
        total = squared = 0.0
        for value in values[place * group_size : (place + 1) * group_size]:
            wide = np.float64(value)
            total += wide
            squared += wide * wide
        sums[place] = total
        squares[place] = squared


@compiled
def _normalize_neighbours(x: Floats, y: Floats, planes: Floats, wide: Floats, piece: int, group_size: int) -> None:
    """Normalize a row whose groups lie beside each other; ``wide`` holds weight and bias, and room for the rest."""
    for begin in range(0, planes.shape[1], piece):
        end = min(begin + piece, planes.shape[1])
        for plane in range(3):
            _repeat(planes[plane, begin:end], wide[plane], group_size)
        length = (end - begin) * group_size
        given, made = x[begin * group_size : end * group_size], y[begin * group_size : end * group_size]
        mean, rest, rstd = wide[0, :length], wide[1, :length], wide[2, :length]
        weight, bias = wide[3, :length], wide[4, :length]
        for place in range(length):
            made[place] = ((given[place] - mean[place]) - rest[place]) * rstd[place] * weight[place] + bias[place]


@compiled
def _repeat(values: Floats, out: Floats, times: int) -> None:
    """Write each value so many times."""
    if times == 4:
        for place in range(values.shape[0]):
            out[4 * place] = values[place]
            out[4 * place + 1] = values[place]
            out[4 * place + 2] = values[place]
            out[4 * place + 3] = values[place]
        return
    for place in range(values.shape[0]):
        out[place * times : (place + 1) * times] = values[place]


@compiled
def _moments(
    sums: Doubles,
    squares: Doubles,
    share: Doubles,
    row_share: float,
    eps: np.float32,
    mean: Floats,
    rest: Floats,
    rstd: Floats,
    variance: bool,
) -> None:
    """Write the mean, what float32 leaves of it, and the reciprocal deviation or the variance."""
    for col in range(sums.shape[0]):
        middle = sums[col] * (share[col] * row_share)
        spread = squares[col] * (share[col] * row_share) - middle * middle
        narrow = np.float32(middle)
        mean[col] = narrow
        rest[col] = np.float32(middle - np.float64(narrow))
        # Below 0 by rounding where the window is flat; NaN stays NaN.
        rstd[col] = np.float32(0.0 if spread < 0.0 else spread)
    if not variance:
        for col in range(sums.shape[0]):
            rstd[col] = np.float32(1.0) / np.sqrt(rstd[col] + eps)


@compiled
def _normalize(
    x: Floats, y: Floats, mean: Floats, rest: Floats, rstd: Floats, weight: np.float32, bias: np.float32
) -> None:
    for col in range(x.shape[0]):
        y[col] = ((x[col] - mean[col]) - rest[col]) * rstd[col] * weight + bias


@compiled_sums
def _weigh(
    grad: Floats,
    x: Floats,
    mean: Floats,
    rstd: Floats,
    weight: np.float32,
    sums: Floats,
    products: Floats,
    first: bool,
) -> tuple[float, float]:
    """Add a channel to the sums of g and g z; return its sums for the gradients of weight and bias."""
    of_weight = of_bias = np.float32(0.0)
    if first:
        for col in range(x.shape[0]):
            product = grad[col] * ((x[col] - mean[col]) * rstd[col])
            sums[col] = grad[col] * weight
            products[col] = product * weight
            of_bias += grad[col]
            of_weight += product
    else:
        for col in range(x.shape[0]):
            product = grad[col] * ((x[col] - mean[col]) * rstd[col])
            sums[col] += grad[col] * weight
            products[col] += product * weight
            of_bias += grad[col]
            of_weight += product
    return np.float64(of_weight), np.float64(of_bias)


@compiled
def _gather(sums: Floats, mean: Floats, rstd: Floats, share: Doubles, row_share: float, gathered: Doubles) -> None:
    """Add ``r sum(g) - mean q`` and ``q`` of a row, divided by the values in a window."""
    of_mean, of_variance = gathered[0], gathered[1]
    for col in range(mean.shape[0]):
        deviation = np.float64(rstd[col])
        part = share[col] * row_share
        q = deviation * deviation * np.float64(sums[1, col]) * part
        of_variance[col] += q
        of_mean[col] += deviation * np.float64(sums[0, col]) * part - np.float64(mean[col]) * q


@compiled
def _spread_out(line: Doubles, out: Doubles, cols: tuple[int, int]) -> None:
    """Lay a row out so that the full windows of ``out``, one after the other, hold what each column receives."""
    window, cut = cols
    width = line.shape[0]
    before = (window - 1) // 2
    if cut:
        out[window - 1 - before : window - 1 - before + width] = line
        return
    full = width - window + 1
    out[window - 1 : window - 1 + full] = line[before : before + full]
    for col in range(before):
        out[window - 1] += line[col]
    for col in range(before + full, width):
        out[window - 2 + full] += line[col]


@compiled
def _level(of_mean: Doubles, of_variance: Doubles, mean: Floats, planes: Floats) -> None:
    """Write what is taken off the gradient, and what is taken off times the distance from the mean."""
    constant, slope = planes[0], planes[1]
    for col in range(mean.shape[0]):
        constant[col] = np.float32(of_mean[col] + np.float64(mean[col]) * of_variance[col])
        slope[col] = np.float32(of_variance[col])


@compiled
def _pass_on(
    grad: Floats,
    x: Floats,
    mean: Floats,
    rstd: Floats,
    constant: Floats,
    slope: Floats,
    weight: np.float32,
    grad_x: Floats,
) -> None:
    for col in range(x.shape[0]):
        grad_x[col] = grad[col] * weight * rstd[col] - constant[col] - (x[col] - mean[col]) * slope[col]


# --- sliding windows --------------------------------------------------------------------------------


@compiled
def _plan(window: int) -> Integers:
    """Return the sums a window is put together from: (level, cells before it, cells from its end on) of each.

    The sum of level k covers ``4 ** k`` cells.
    """
    levels = 1
    while 4**levels <= window:
        levels += 1
    parts = np.empty((3 * levels, 3), np.int64)
    count = 0
    covered = 0
    for level in range(levels - 1, -1, -1):
        while window - covered >= 4**level:
            parts[count, 0] = level
            parts[count, 1] = covered
            covered += 4**level
            parts[count, 2] = window - covered
            count += 1
    return parts[:count]


@compiled
def _slide_across(out: Doubles, runs: Doubles, stride: int, plan: Integers, starts: Integers, lanes: int) -> None:
    """Slide over rows that lie one after the other; the columns at the end of each row get nonsense.

    ``lanes`` values of a column lie beside each other.
    """
    length = out.shape[0]
    for level in range(1, plan[0, 0] + 1):
        for part in range(4):
            starts[part] = (level - 1) * stride + part * 4 ** (level - 1) * lanes
        _add_up(runs[level * stride : level * stride + length], runs, starts, 4)
    for part in range(plan.shape[0]):
        starts[part] = plan[part, 0] * stride + plan[part, 1] * lanes
    _add_up(out, runs, starts, plan.shape[0])


@compiled
def _push(
    ring: Doubles, pitch: int, offsets: Integers, sizes: Integers, row: int, count: int, starts: Integers
) -> None:
    """Make the sums of 4, 16, ... rows that end with each new row."""
    for level in range(1, sizes.shape[0]):
        cells = 4 ** (level - 1)
        done = 0
        while done < count:
            place = (row + done) % sizes[level]
            together = min(count - done, sizes[level] - place)
            for part in range(4):
                source = (row + done - (3 - part) * cells) % sizes[level - 1]
                together = min(together, sizes[level - 1] - source)
                starts[part] = (offsets[level - 1] + source) * pitch
            begin = (offsets[level] + place) * pitch
            _add_up(ring[begin : begin + together * pitch], ring, starts, 4)
            done += together


@compiled
def _pull(
    out: Doubles,
    ring: Doubles,
    pitch: int,
    offsets: Integers,
    sizes: Integers,
    plan: Integers,
    row: int,
    count: int,
    starts: Integers,
) -> None:
    """Write the sums of the windows that end with some rows."""
    done = 0
    while done < count:
        together = count - done
        for part in range(plan.shape[0]):
            level = plan[part, 0]
            source = (row + done - plan[part, 2]) % sizes[level]
            together = min(together, sizes[level] - source)
            starts[part] = (offsets[level] + source) * pitch
        _add_up(out[done * pitch : (done + together) * pitch], ring, starts, plan.shape[0])
        done += together


@compiled
def _add_up(out: Doubles, values: Doubles, starts: Integers, parts: int) -> None:
    """Write the sum of stretches of ``values``, in the order of their starts."""
    length = out.shape[0]
    one = values[starts[0] : starts[0] + length]
    if parts == 1:
        for place in range(length):
            out[place] = one[place]
        return
    two = values[starts[1] : starts[1] + length]
    if parts == 2:
        for place in range(length):
            out[place] = one[place] + two[place]
        return
    three = values[starts[2] : starts[2] + length]
    if parts == 3:
        for place in range(length):
            out[place] = (one[place] + two[place]) + three[place]
        return
    four = values[starts[3] : starts[3] + length]
    for place in range(length):
        out[place] = (one[place] + two[place]) + (three[place] + four[place])
    part = 4
    while part < parts:
        one = values[starts[part] : starts[part] + length]
        if part + 1 == parts:
            for place in range(length):
                out[place] += one[place]
            return
        two = values[starts[part + 1] : starts[part + 1] + length]
        if part + 2 == parts:
            for place in range(length):
                out[place] += one[place] + two[place]
            return
        three = values[starts[part + 2] : starts[part + 2] + length]
        for place in range(length):
            out[place] += (one[place] + two[place]) + three[place]
        part += 3


@compiled
def _start_of(row: int, window: int, height: int, cut: int) -> int:
    """Return the first row of a row's window, which lies outside where a window is cut."""
    start = row - (window - 1) // 2
    return start if cut else min(max(start, 0), height - window)


@compiled
def _served(start: int, window: int, height: int, cut: int) -> tuple[int, int]:
    """Return the first and last but one row that take the window which begins at ``start``."""
    before = (window - 1) // 2
    if cut:
        return start + before, start + before + 1
    first = 0 if start == 0 else start + before
    end = height if start == height - window else start + before + 1
    return first, end


@compiled
def _share(cols: tuple[int, int], width: int, group_size: int) -> Doubles:
    """Return for each window of a row one over the number of its values in one row."""
    window, cut = cols
    if not cut:
        return np.full(width, 1.0 / (group_size * window))
    share = np.empty(width)
    for col in range(width):
        start = col - (window - 1) // 2
        share[col] = 1.0 / (group_size * (min(start + window, width) - max(start, 0)))
    return share


@compiled
def _space(
    across: Integers, down: Integers, span: int, lanes: int
) -> tuple[int, int, Doubles, int, Doubles, Integers, Integers, Doubles, Integers]:
    """Return what windows are slid in, for two planes of rows of ``span`` columns with so many lanes.

    Values from a row to the next; rows worked through together; the sums of 1, 4, 16, ... columns, one level after the
    other, and their distance; the same of rows, where each level begins and how many rows it has; the results; the
    starts of what is added up.
    """
    pitch = _padded(span * lanes)
    step = max(1, ROW_VALUES // (2 * pitch))
    # Sums are read beyond the end of the last row, by up to a window.
    stride = _padded(2 * pitch * step + _length(across) * lanes)
    runs = _aligned((across[0, 0] + 1) * stride)
    ring, offsets, sizes = _rings(down, step, 2 * pitch)
    starts = np.empty(max(4, across.shape[0], down.shape[0]), np.int64)
    return pitch, step, runs, stride, ring, offsets, sizes, _aligned(2 * pitch * step), starts


@compiled
def _length(plan: Integers) -> int:
    """Return the window's length."""
    return 4 ** plan[0, 0] + plan[0, 2]


@compiled
def _rings(plan: Integers, step: int, pitch: int) -> tuple[Doubles, Integers, Integers]:
    """Return rows for the sums of 1, 4, 16, ... rows, and where each level begins and how many rows it has."""
    levels = plan[0, 0] + 1
    sizes = np.empty(levels, np.int64)
    for level in range(levels):
        back = 0
        for part in range(plan.shape[0]):
            if plan[part, 0] == level:
                back = max(back, plan[part, 2])
        if level + 1 < levels:
            back = max(back, 3 * 4**level)
        sizes[level] = -(-(back + step) // step) * step
    offsets = np.zeros(levels, np.int64)
    for level in range(1, levels):
        offsets[level] = offsets[level - 1] + sizes[level - 1]
    return _aligned((offsets[-1] + sizes[-1]) * pitch), offsets, sizes


@compiled
def _aligned(length: int) -> Doubles:
    """Return zeros that begin with a line of the cache."""
    values = np.zeros(length + 8)
    skip = (-values.ctypes.data) % 64 // 8
    return values[skip : skip + length]


@compiled
def _padded(length: int) -> int:
    return (length + 7) // 8 * 8
