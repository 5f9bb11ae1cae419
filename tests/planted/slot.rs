//! Bugs where kernels take A and B from a slot.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{DecodeSlot, ForwardSlot, ForwardWgmmaSlot};
use super::harness::{Bug, UNORDERED, bug};

const FACTORS: &str = "lora/factors.h";
pub(crate) const BUGS: &[Bug] = &[
    bug(
        "another layer's factors are taken",
        FACTORS,
        DecodeSlot,
        "p.slot_begin + segment);",
        "segment);",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "the segments' own factors are taken",
        FACTORS,
        ForwardSlot,
        "p.slot == nullptr ? p",
        "p.slot != nullptr ? p",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "the last segment's factors are not fetched",
        FACTORS,
        ForwardSlot,
        "if (segment >= p.segment_count) return;",
        "if (segment >= p.segment_count - 1) return;",
        Build::Race,
        &[By(Fault::Uninitialised)],
    ),
    bug(
        "the strides are taken for each other",
        FACTORS,
        DecodeSlot,
        "rest.word[0], rest.word[1],",
        "rest.word[1], rest.word[0],",
        Build::Plain,
        &[By(Fault::OutOfBounds), By(Fault::Misaligned), WrongResult],
    ),
    bug(
        "the factors are used before they are there",
        "lora/forward_wgmma.h",
        ForwardWgmmaSlot,
        "this->factors.fetch(p);\n    sync_all();",
        "sync_all();\n    this->factors.fetch(p);",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "rows of A are those that the launch is planned for",
        "lora/forward.h",
        ForwardSlot,
        "return row < factors.rank ? static_cast",
        "return row < p.segments[segment].factors.rank ? static_cast",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "B has as many columns as the launch is planned for",
        "lora/forward_tile.h",
        ForwardSlot,
        "stage_chunk<E, false>(place, b, step.k + elements * chunk, own.rank, own.b)",
        "stage_chunk<E, false>(place, b, step.k + elements * chunk, segment.factors.rank, own.b)",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "the scale is the segment's own",
        "lora/forward.h",
        ForwardWgmmaSlot,
        "const float scale = all[s].scale;\n  low",
        "const float scale = segment.factors.scale;\n  low",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "rows of A that an adapter does not have are read",
        "lora/shrink.h",
        DecodeSlot,
        "return row < factors.rank ? static_cast<const E*>(factors.a) + u64(row) * factors.a_stride : nullptr;",
        "return static_cast<const E*>(factors.a) + u64(row) * factors.a_stride;",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
];
