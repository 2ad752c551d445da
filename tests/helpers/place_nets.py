"""Programs that compute places beside plain numpy: orders of rows, values from places and into them, sampled images."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from cpupack.stages.quantize.native.placed import (
    append_order,
    append_pick,
    append_put,
    append_sample,
    append_sample_of_volume,
)
from cpupack.stages.quantize.native.walks import Fixed, Put, Sampling, Surroundings, View
from helpers.float_nets import EXTREMES, Array, Net, normal
from helpers.float_values import fma


def orders_of_rows(length: int) -> Net:
    """Rows with ties, both zeros, infinities and what is no number, along each dimension; all of them or the first."""
    random = np.random.default_rng(length)
    samples = random.choice(np.concatenate([EXTREMES, normal(9)]), (2, 3 * length * 5))
    net = Net(samples)
    view, x = net.view((3, length, 5))
    for axis, order in ((1, (0, 1, 2)), (2, (0, 2, 1)), (0, (1, 0, 2))):
        own, turned = view.permuted(order), x.transpose(0, *(each + 1 for each in order))
        for down, count in itertools.product((False, True), sorted({1, (length + 1) // 2, length})):
            places = order_of(np.moveaxis(turned, axis + 1, -1), down=down)[..., :count]
            values = np.take_along_axis(np.moveaxis(turned, axis + 1, -1), places, -1)
            for found, expected in ((False, places), (True, values)):
                net.result(
                    append_order(net.floats, own, axis, count, down=down, values=found),
                    np.moveaxis(expected, -1, axis + 1),
                )
    return net


def order_of(x: Array, *, down: bool) -> Array:
    """Return the places of rows in their order: equal values as they come, what is no number above all."""
    flipped = x[..., ::-1] if down else x
    found = np.argsort(flipped, -1, kind="stable")  # numpy too has what is no number last
    return x.shape[-1] - 1 - found[..., ::-1] if down else found


def picks() -> Net:
    """Values at places along each dimension: of each value its own, of rows in common, of views in any order."""
    random = np.random.default_rng(4)
    net = Net(np.concatenate([normal(3, 4 * 5 * 7), random.integers(0, 4, (3, 6 * 5 * 7)).astype(np.float32)], 1))
    view, x = net.view((4, 5, 7))
    for axis in range(3):
        shape = tuple(6 if place == axis else size for place, size in enumerate(view.shape))
        at, numbers = net.view(shape, 140)
        net.result(append_pick(net.floats, view, at, axis), np.take_along_axis(x, numbers.astype(np.int64), axis + 1))
    at, numbers = net.view((6, 5, 1), 140)
    places = np.broadcast_to(numbers.astype(np.int64), (3, 6, 5, 7))
    net.result(append_pick(net.floats, view, at.expanded((6, 5, 7)), 0), np.take_along_axis(x, places, 1))
    apart = net.floats.side_by_side(view.permuted((2, 1, 0))).permuted((2, 1, 0))
    net.result(append_pick(net.floats, apart, at.expanded((6, 5, 7)), 0), np.take_along_axis(x, places, 1))
    return net


def puts() -> Net:
    """Values put into places, several into one and none into others: by each kind, with and without common places."""
    random = np.random.default_rng(5)
    size = 9 * 5 * 7
    values = normal(2, size)
    values[:, ::11] = np.nan
    net = Net(np.concatenate([normal(2, 4 * 5 * 7), values, random.integers(0, 4, (2, size)).astype(np.float32)], 1))
    base, x = net.view((4, 5, 7))
    for axis, kind in itertools.product(range(3), Put):
        shape = tuple(9 if place == axis else length for place, length in enumerate(base.shape))
        shape = tuple(min(each, length) for each, length in zip(shape, (9, 5, 7), strict=True))
        given, y = net.view(shape, 140)
        at, numbers = net.view(shape, 140 + size)
        net.result(
            append_put(net.floats, base, at, given, axis, kind), put(x, numbers.astype(np.int64), y, axis + 1, kind)
        )
    given, y = net.view((9, 5, 7), 140)
    at, numbers = net.view((9, 5, 1), 140 + size)
    places = np.broadcast_to(numbers.astype(np.int64), y.shape)
    for kind in Put:
        found = append_put(net.floats, base, at.expanded((9, 5, 7)), given, 0, kind)
        net.result(found, put(x, places, y, 1, kind))
    one = np.full(y.shape, np.float32(2.5))
    found = append_put(net.floats, base, at.expanded((9, 5, 7)), Fixed(torch.full((1, 1, 1), 2.5)), 0, Put.SUM)
    net.result(found, put(x, places, one, 1, Put.SUM))
    return net


def put(base: Array, places: Array, values: Array, axis: int, kind: Put) -> Array:
    """Return values put into places along a dimension, one after the other."""
    result = np.moveaxis(base.copy(), axis, -1)
    places, values = (np.moveaxis(each, axis, -1) for each in (places, values))
    with np.errstate(invalid="ignore"):
        for index in np.ndindex(*places.shape):
            to = (*index[:-1], places[index])
            before, value = result[to], values[index]
            result[to] = {
                Put.VALUE: lambda b, v: v,
                Put.SUM: lambda b, v: b + v,
                Put.PRODUCT: lambda b, v: b * v,
                Put.MAXIMUM: lambda b, v: v if v > b or np.isnan(v) else b,
                Put.MINIMUM: lambda b, v: v if v < b or np.isnan(v) else b,
            }[kind](before, value)
    return np.moveaxis(result, -1, axis)


def sampled(channels: int) -> Net:
    """Images read between pixels, on them, at the edges, beyond, far beyond, and at what is no place."""
    random = np.random.default_rng(channels)
    height, width, rows, columns = 5, 6, 4, 9
    grid = random.uniform(-1.6, 1.6, (2, rows * columns * 2)).astype(np.float32)
    grid[:, :9] = 0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e30, -7.0, 5.0
    net = Net(np.concatenate([normal(2, channels * height * width), grid], 1))
    view, x = net.view((channels, height, width))
    at, places = net.view((rows, columns, 2), channels * height * width)
    for how, around, corners in itertools.product(Sampling, Surroundings, (False, True)):
        found = append_sample(net.floats, _of_one(view), _of_one(at), how, around, corners=corners)
        net.result(View(found.buffer, found.shape[1:], found.steps[1:], found.first),
                   sample(x, places, how, around, corners=corners))  # fmt: skip
    return net


def _of_one(view: View) -> View:
    return View(view.buffer, (1, *view.shape), (0, *view.steps), view.first)


def sampled_images(channels: int) -> Net:
    """Several images of a sample, each read at places of its own, with the grids in order and turned around."""
    random = np.random.default_rng(channels)
    images, height, width, rows, columns = 3, 4, 5, 2, 7
    grid = random.uniform(-1.3, 1.3, (2, images * rows * columns * 2)).astype(np.float32)
    net = Net(np.concatenate([normal(2, images * channels * height * width), grid], 1))
    view, x = net.view((images, channels, height, width))
    first = images * channels * height * width
    wanted = x.reshape(2 * images, channels, height, width)
    for at, places in (
        net.view((images, rows, columns, 2), first),
        _turned(*net.view((rows, images, columns, 2), first)),
        net.view((images, 1, rows * columns, 2), first),
    ):
        found = append_sample(net.floats, view, at, Sampling.LINEAR, Surroundings.ZEROS, corners=True)
        each = sample(wanted, places.reshape(2 * images, *places.shape[2:]), Sampling.LINEAR, Surroundings.ZEROS,
                      corners=True)  # fmt: skip
        net.result(found, each.reshape(2, images, *each.shape[1:]))
    return net


def sampled_volumes(channels: int) -> Net:
    """A volume read between its voxels, beyond its ends and at what is no place, with the grid in order and turned."""
    random = np.random.default_rng(channels)
    depth, height, width, frames, rows, columns = 3, 4, 5, 2, 3, 7
    grid = random.uniform(-1.6, 1.6, (2, frames * rows * columns * 3)).astype(np.float32)
    grid[:, :9] = 0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e30, -7.0, 5.0
    first = channels * depth * height * width
    net = Net(np.concatenate([normal(2, first), grid], 1))
    view, x = net.view((channels, depth, height, width))
    for how, around, corners in itertools.product((Sampling.LINEAR, Sampling.NEAREST), Surroundings, (False, True)):
        for at, places in (
            net.view((frames, rows, columns, 3), first), _turned(*net.view((rows, frames, columns, 3), first)),
        ):  # fmt: skip
            found = append_sample_of_volume(net.floats, view, at, how, around, corners=corners)
            net.result(found, sample_volume(x, places, how, around, corners=corners))
    return net


def _turned(view: View, values: Array) -> tuple[View, Array]:
    return view.permuted((1, 0, 2, 3)), values.swapaxes(1, 2)


def sample(x: Array, places: Array, how: Sampling, around: Surroundings, *, corners: bool) -> Array:
    """Return images ``(n, channels, height, width)`` read at places ``(n, rows, columns, 2)``."""
    n, channels, height, width = x.shape
    result = np.zeros((n, channels, *places.shape[1:3]), np.float32)
    for index in np.ndindex(n, *places.shape[1:3]):
        across, down = (
            _side(float(places[index][place]), length, how, around, corners)
            for place, length in ((0, width), (1, height))
        )
        lost = any(np.isnan(share) for _, share in (*across, *down))
        total = np.full(channels, np.nan if lost else 0.0, np.float32)
        for (row, of_row), (column, of_column) in itertools.product(down, across):
            if row >= 0 and column >= 0:
                share = np.float32(of_row * of_column)
                total = fma(x[index[0], :, row, column], np.broadcast_to(share, total.shape), total)
        result[index[0], :, index[1], index[2]] = total
    return result


def sample_volume(x: Array, places: Array, how: Sampling, around: Surroundings, *, corners: bool) -> Array:
    """Return volumes ``(n, channels, depth, height, width)`` read at places ``(n, frames, rows, columns, 3)``."""
    n, channels, *lengths = x.shape
    result = np.zeros((n, channels, *places.shape[1:4]), np.float32)
    for index in np.ndindex(n, *places.shape[1:4]):
        deep, down, across = (
            _side(float(places[index][2 - place]), length, how, around, corners) for place, length in enumerate(lengths)
        )
        lost = any(np.isnan(share) for _, share in (*deep, *down, *across))
        total = np.full(channels, np.nan if lost else 0.0, np.float32)
        for (frame, of_frame), (row, of_row), (column, of_column) in itertools.product(deep, down, across):
            if min(frame, row, column) >= 0:
                share = np.float32(of_frame * (of_row * of_column))
                total = fma(x[index[0], :, frame, row, column], np.broadcast_to(share, total.shape), total)
        result[(index[0], slice(None), *index[1:])] = total
    return result


def _side(number: float, length: int, how: Sampling, around: Surroundings, corners: bool) -> list[tuple[int, float]]:
    """Return the pixels along one side that a place is between, -1 for none, and the share of each."""
    place = (np.float64(number) + 1.0) * np.float64(length - 1 if corners else length) / 2.0 - (0.0 if corners else 0.5)
    if how is Sampling.NEAREST:
        return [(_pixel(np.rint(_placed(place, length, around, corners)), length), 1.0)]
    if how is Sampling.LINEAR:
        place = _placed(place, length, around, corners)
        before = np.floor(place)
        return [(_pixel(before, length), 1.0 - (place - before)), (_pixel(before + 1.0, length), place - before)]
    before = np.floor(place)
    return [
        (_pixel(_placed(before + tap, length, around, corners), length), _cubic(place - before - tap))
        for tap in (-1.0, 0.0, 1.0, 2.0)
    ]


def _pixel(place: float, length: int) -> int:
    return int(place) if 0.0 <= place < length else -1


def _placed(place: np.float64, length: int, around: Surroundings, corners: bool) -> np.float64:
    if around is Surroundings.ZEROS:
        return place
    if around is Surroundings.MIRROR:
        low, span = (0.0, length - 1.0) if corners else (-0.5, float(length))
        way = np.abs(place - low)
        turns = np.floor(way / span)
        rest = way - turns * span
        place = (rest if np.floor(turns / 2.0) * 2.0 == turns else span - rest) + low
    return np.float64(min(place, length - 1.0) if place > 0.0 else 0.0)


def _cubic(away: np.float64) -> float:
    a, x = -0.75, np.abs(away)
    if x < 1.0:
        return float(((a + 2.0) * x - (a + 3.0)) * x * x + 1.0)
    return float(((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a)
