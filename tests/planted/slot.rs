//! Bugs where kernels take A and B from a slot.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{DecodeSlot, ForwardSlot, ForwardWgmmaSlot};
use super::harness::{Bug, UNSYNCHRONISED};

const FACTORS: &str = "lora/factors.h";
pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "another layer's factors are used",
        file: FACTORS,
        scenario: DecodeSlot,
        original: "p.slot_begin + segment);",
        planted: "segment);",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "the segments' own factors are used",
        file: FACTORS,
        scenario: ForwardSlot,
        original: "p.slot == nullptr ? p",
        planted: "p.slot != nullptr ? p",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "the last segment's factors are not loaded from the slot",
        file: FACTORS,
        scenario: ForwardSlot,
        original: "if (segment >= p.segment_count) return;",
        planted: "if (segment >= p.segment_count - 1) return;",
        build: Build::Race,
        caught: &[By(Fault::Uninitialised)],
    },
    Bug {
        name: "the strides of A and B are exchanged",
        file: FACTORS,
        scenario: DecodeSlot,
        original: "rest.word[0], rest.word[1],",
        planted: "rest.word[1], rest.word[0],",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), By(Fault::Misaligned), WrongResult],
    },
    Bug {
        name: "the factors are used before they are loaded",
        file: "lora/forward_wgmma.h",
        scenario: ForwardWgmmaSlot,
        original: "factors.fetch(p); if constexpr (C::ctas > 1) { cluster_sync(); } else { sync_block(); }",
        planted: "if constexpr (C::ctas > 1) { cluster_sync(); } else { sync_block(); } factors.fetch(p);",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "A has as many rows as the launch is planned for",
        file: "lora/forward.h",
        scenario: ForwardSlot,
        original: "return row < factors.rank ? static_cast",
        planted: "return row < p.segments[segment].factors.rank ? static_cast",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "B has as many columns as the launch is planned for",
        file: "lora/forward_tile.h",
        scenario: ForwardSlot,
        original: "stage_chunk<E, false>(place, b, step.k + C::elements * chunk, own.rank, own.b)",
        planted: "stage_chunk<E, false>(place, b, step.k + C::elements * chunk, segment.factors.rank, own.b)",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "the segment's own scale is used",
        file: "lora/forward.h",
        scenario: ForwardWgmmaSlot,
        original: "const float scale = all[s].scale;\n  low",
        planted: "const float scale = segment.factors.scale;\n  low",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "rows of A that an adapter does not have are read",
        file: "lora/shrink.h",
        scenario: DecodeSlot,
        original: "return row < factors.rank ? static_cast<const E*>(factors.a) + u64(row) * factors.a_stride : nullptr;",
        planted: "return static_cast<const E*>(factors.a) + u64(row) * factors.a_stride;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
];
