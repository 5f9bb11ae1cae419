//! Bugs in LayerNorm and the embedding, and the rows that show them.

use fused_lora::Element;
use fused_lora_emulator::{Build, Fault};
use half::f16;

use super::harness::Caught::{self, By, WrongResult};
use super::harness::Scenario::{Embedding, LayerNorm};
use super::harness::{Bug, UNSYNCHRONISED, first_of, outcome_of};
use crate::common::rig::Rig;
use crate::common::transformer::{Embedded, Norm, embed, layer_norm};
use crate::common::{Buffer, Gaps, Rng};

const ROW: &str = "transformer/row.h";
const NORM: &str = "transformer/layer_norm.h";
const EMBEDDING: &str = "transformer/embedding.h";

pub(crate) fn bits<T: Element>(buffer: &Buffer<T>) -> Vec<u32> {
    buffer.data.iter().map(|value| value.to_f32().to_bits()).collect()
}

fn run_layer_norm<T: Element>(
    rig: &Rig,
    [rows, width]: [usize; 2],
    multiprocessors: usize,
    gap: usize,
    shift: usize,
) -> Caught {
    let mut rng = Rng(61);
    let mut x = Buffer::<T>::random(&mut rng, rows, width, gap);
    // The first row is so small that ε matters, the others are so far from zero that the mean's error matters.
    let stride = x.stride;
    x.data[..stride].iter_mut().for_each(|value| *value = T::from_f64(1e-3 * f64::from(value.to_f32())));
    x.data[stride..].iter_mut().for_each(|value| *value = T::from_f64(8.0 + f64::from(value.to_f32())));
    let norm = Norm::random(&mut rng, width, shift);
    outcome_of(rig, || {
        let y = layer_norm(rig, &x, &norm, multiprocessors, gap)?;
        Ok((norm.agrees(&x, &y).is_ok(), bits(&y)))
    })
}

/// Two rows per CTA, each of several warps, with a last CTA that is half empty; rows that end within a chunk; rows of
/// three blocks; unaligned parameters.
pub(crate) fn layer_norms(rig: &Rig) -> Caught {
    first_of([
        &|| run_layer_norm::<f16>(rig, [5, 1544], 1, 0, 0),
        &|| run_layer_norm::<f32>(rig, [3, 45], 1, 3, 0),
        &|| run_layer_norm::<f32>(rig, [2, 16500], 1, 0, 0),
        &|| run_layer_norm::<f32>(rig, [2, 32], 1, 0, 1),
    ])
}

fn run_embedding<T: Element>(rig: &Rig, rows: usize, width: usize, has_extra: bool) -> Caught {
    let mut rng = Rng(62);
    let input = Embedded::<T>::random(&mut rng, rows, width, Gaps::CHUNKS, has_extra);
    let norm = Norm::random(&mut rng, width, 0);
    outcome_of(rig, || {
        let (x, y) = embed(rig, &input, Some(&norm), 1, Gaps::CHUNKS)?;
        Ok((input.agrees(&x).and_then(|()| norm.agrees(&x, &y)).is_ok(), bits(&y)))
    })
}

/// Ids in both tables and beyond them; rows of one block and of two.
pub(crate) fn embeddings(rig: &Rig) -> Caught {
    first_of([&|| run_embedding::<f16>(rig, 9, 40, true), &|| run_embedding::<f32>(rig, 7, 24, false), &|| {
        run_embedding::<f32>(rig, 1, 8200, true)
    }])
}

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "other warps' moments are read before they are written",
        file: ROW,
        scenario: LayerNorm,
        original: "    sync_block();\n    mine = shared",
        planted: "    mine = shared",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "all rows of a CTA get the moments of the first",
        file: ROW,
        scenario: LayerNorm,
        original: "shared[(warp_id() & ~(row_warps - 1)) + ",
        planted: "shared[",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "parts of a row have equal weights although their counts differ",
        file: ROW,
        scenario: LayerNorm,
        original: "a.count == b.count ? 0.5f : b.count / count",
        planted: "0.5f",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "elements beyond the row's end count as zeros",
        file: ROW,
        scenario: LayerNorm,
        original: "ALIGNED || first + i < width ? value[i] - mean : 0.0f",
        planted: "value[i] - mean",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the blocks before the last one are not fetched again",
        file: ROW,
        scenario: LayerNorm,
        original: "if (block + 1 != blocks) fetch(block);",
        planted: "if (block == blocks) fetch(block);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "rows below the last are read",
        file: ROW,
        scenario: LayerNorm,
        original: "number < rows ? (width + elements - 1) / elements : 0",
        planted: "(width + elements - 1) / elements",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "the sum of squares is not divided by the width",
        file: ROW,
        scenario: LayerNorm,
        original: "row.squares / row.count + epsilon",
        planted: "row.squares + epsilon",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "ε is not added",
        file: ROW,
        scenario: LayerNorm,
        original: "row.squares / row.count + epsilon",
        planted: "row.squares / row.count",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the end of rows is not checked",
        file: ROW,
        scenario: LayerNorm,
        original: "tile::rows_are_aligned<E>(base, stride) && width % chunk_elements<E> == 0",
        planted: "tile::rows_are_aligned<E>(base, stride)",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "the parameters' alignment is not checked",
        file: NORM,
        scenario: LayerNorm,
        original: "tile::rows_are_aligned<float>(p.weight, 0) && tile::rows_are_aligned<float>(p.bias, 0)",
        planted: "true",
        build: Build::Plain,
        caught: &[By(Fault::Misaligned)],
    },
    Bug {
        name: "rows beyond a table are read",
        file: EMBEDDING,
        scenario: Embedding,
        original: "return index < rows ? ",
        planted: "return rows != 0 ? ",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "an id beyond the vocabulary is not made relative to the extra rows",
        file: EMBEDDING,
        scenario: Embedding,
        original: "id - p.vocabulary, p.extra_rows",
        planted: "id, p.extra_rows",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a position beyond the table adds nothing",
        file: EMBEDDING,
        scenario: Embedding,
        original: "const bool known = token != nullptr && position != nullptr;",
        planted: "const bool known = token != nullptr;\n  if (position == nullptr) position = token;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "positions are as far apart as tokens",
        file: EMBEDDING,
        scenario: Embedding,
        original: "row_of_table<E>(p.positions, place, p.position_rows, p.positions_stride);",
        planted: "row_of_table<E>(p.positions, place, p.position_rows, p.tokens_stride);",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
];
