//! Between PyTorch's layouts (`[C][H][W]`, `[Co][Ci][kh][kw]`) and blocks of sixteen channels.

#![expect(unsafe_code, reason = "memory that is written before it is read")]

use std::mem::MaybeUninit;

use super::geometry::Frame;
use super::lanes::{LANES, Lanes};

/// Copies an image `[C][h][w]` into its frame; the border stays as it is.
#[inline(always)]
pub(super) fn image_to_frame<V: Lanes>(image: &[f32], (h, w): (usize, usize), frame: &Frame, to: &mut [f32]) {
    for first in (0..frame.channels).step_by(LANES) {
        let lanes = LANES.min(frame.channels - first);
        let plane = &mut to[first / LANES * frame.plane()..][..frame.plane()];
        for y in 0..h {
            let (ry, row) = ((y + frame.top) % frame.stride, (y + frame.top) / frame.stride);
            if ry >= frame.remainders.0 || row >= frame.rows {
                continue;
            }
            let from = &image[(first * h + y) * w..];
            if frame.stride == 1 {
                let width = w.min(frame.cols - frame.left);
                let place = row * frame.row() + frame.left * LANES;
                channels_to_lanes::<V>(from, h * w, lanes, width, &mut plane[place..]);
            } else {
                strided_row::<V>(from, h * w, lanes, w, frame, (ry, row), plane);
            }
        }
    }
}

/// One row of an image for a stride above 1: neighbours go to different parts of the frame.
#[inline(always)]
fn strided_row<V: Lanes>(
    from: &[f32],
    step: usize,
    lanes: usize,
    w: usize,
    frame: &Frame,
    (ry, row): (usize, usize),
    plane: &mut [f32],
) {
    let mut pixels = [0.0; 8 * LANES];
    for first in (0..w).step_by(8) {
        let width = 8.min(w - first);
        channels_to_lanes::<V>(&from[first..], step, lanes, width, &mut pixels);
        for (i, pixel) in pixels.chunks_exact(LANES).take(width).enumerate() {
            let x = first + i + frame.left;
            let (rx, col) = (x % frame.stride, x / frame.stride);
            if rx < frame.remainders.1 && col < frame.cols {
                let place = ((ry * frame.remainders.1 + rx) * frame.rows + row) * frame.cols + col;
                plane[place * LANES..][..LANES].copy_from_slice(pixel);
            }
        }
    }
}

/// Blocks `[block][row][col][lane]`, of which `h` rows and `w` columns count, to an image `[C][h][w]`, of which every
/// value is written.
#[inline(always)]
pub(super) fn blocks_to_image<V: Lanes>(
    blocks: &[f32],
    (plane, row): (usize, usize),
    (h, w): (usize, usize),
    image: &mut [MaybeUninit<f32>],
) {
    let pixels = h * w;
    // Without a margin the image is one long row.
    let (h, w) = if row == w * LANES { (1, pixels) } else { (h, w) };
    for (block, channels) in image.chunks_mut(LANES * pixels).enumerate() {
        let lanes = channels.len() / pixels;
        for y in 0..h {
            lanes_to_channels::<V>(
                &blocks[block * plane + y * row..],
                w,
                lanes,
                pixels,
                &mut channels[y * w..],
            );
        }
    }
}

/// `to[x][lane] = from[lane * step + x]` for `width` pixels.
#[inline(always)]
fn channels_to_lanes<V: Lanes>(from: &[f32], step: usize, lanes: usize, width: usize, to: &mut [f32]) {
    let eights = if lanes == LANES { width / 8 * 8 } else { 0 };
    for x in (0..eights).step_by(8) {
        for half in [0, 8] {
            // SAFETY: a transposition writes values only.
            let to = unsafe { as_uninit(&mut to[x * LANES + half..]) };
            V::transpose8(&from[half * step + x..], step, to, LANES);
        }
    }
    for x in eights..width {
        for lane in 0..lanes {
            to[x * LANES + lane] = from[lane * step + x];
        }
    }
}

/// `to[lane * step + x] = from[x][lane]` for `width` pixels.
#[inline(always)]
fn lanes_to_channels<V: Lanes>(
    from: &[f32],
    width: usize,
    lanes: usize,
    step: usize,
    to: &mut [MaybeUninit<f32>],
) {
    let eights = if lanes == LANES { width / 8 * 8 } else { 0 };
    for x in (0..eights).step_by(8) {
        V::transpose8(&from[x * LANES..], LANES, &mut to[x..], step);
        V::transpose8(&from[x * LANES + 8..], LANES, &mut to[8 * step + x..], step);
    }
    for x in eights..width {
        for lane in 0..lanes {
            to[lane * step + x].write(from[x * LANES + lane]);
        }
    }
}

/// A slice as a place to write to.
///
/// # Safety
/// Values are written through the result, and never memory without one.
#[inline(always)]
unsafe fn as_uninit(values: &mut [f32]) -> &mut [MaybeUninit<f32>] {
    // SAFETY: both types have one layout, and under the contract above every place keeps a value.
    unsafe { &mut *(std::ptr::from_mut(values) as *mut [MaybeUninit<f32>]) }
}

/// Floats of packed weights: `[output block][channel][tap][lane]` in whole blocks of outputs.
pub(super) fn weights_len(outputs: usize, channels: usize, taps: usize) -> usize {
    outputs.div_ceil(LANES) * channels * taps * LANES
}

/// Visits every weight of `outputs` by `channels` by `taps`: `visit(packed index, output, channel, tap)` in
/// the order `[output block][channel block][tap][channel][lane]`.
pub(super) fn for_each_weight(
    outputs: usize,
    channels: usize,
    taps: usize,
    mut visit: impl FnMut(usize, usize, usize, usize),
) {
    for (block, first_output) in (0..outputs).step_by(LANES).enumerate() {
        let mut place = weights_len(LANES, channels, taps) * block;
        for first in (0..channels).step_by(LANES) {
            let members = first..channels.min(first + LANES);
            for tap in 0..taps {
                for channel in members.clone() {
                    for output in first_output..outputs.min(first_output + LANES) {
                        visit(place + output - first_output, output, channel, tap);
                    }
                    place += LANES;
                }
            }
        }
    }
}
