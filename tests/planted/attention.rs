//! Bugs in the attention kernels, and the calls that show them.

use fused_lora::Element;
use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{self, By, DependsOnSchedule, WrongResult};
use super::harness::Scenario::{AttentionCores, AttentionDecode, AttentionMma};
use super::harness::{Bug, UNSYNCHRONISED, first_of, outcome_of};
use crate::common::Gaps;
use crate::common::attention::{Attention, Case, Operands};
use crate::common::rig::Rig;

const SHARED: &str = "transformer/attention.h";
const PREFILL: &str = "transformer/attention_prefill.h";
const MMA: &str = "transformer/attention_prefill_mma.h";
const CORES: &str = "transformer/attention_prefill_cores.h";
const DECODE: &str = "transformer/attention_decode.cu";

/// Tiles of 16 queries with a cache, of lengths that end a tile of keys anywhere; tiles of 64 queries with a prefix, of several
/// sequences and heads; and unaligned rows.
pub(crate) fn prefill<T: Element>(rig: &Rig) -> Caught {
    let narrow = Case { multiprocessors: 64, ..Case::new(3, 20, 1, 64).with_cache(130, &[90, 111, 5]) };
    let wide = Case { multiprocessors: 1, ..Case::new(2, 70, 2, 24).with_prefix(70) };
    let lengths: Vec<usize> = (16..32).collect();
    let ends = Case { multiprocessors: 64, ..Case::new(16, 2, 1, 16).with_cache(40, &lengths) };
    let unaligned = Case { gaps: Gaps::beyond(1), multiprocessors: 64, ..Case::new(2, 18, 1, 33) };
    first_of([&|| run::<T>(rig, &narrow), &|| run::<T>(rig, &wide), &|| run::<T>(rig, &ends), &|| {
        run::<T>(rig, &unaligned)
    }])
}

/// Keys in several splits, each of several iterations; two of the caches have no room.
pub(crate) fn decode(rig: &Rig) -> Caught {
    let lengths = [0, 64, 255, 256, u32::MAX as usize, 130];
    let case = Case { multiprocessors: 4, ..Case::new(6, 1, 1, 40).with_cache(256, &lengths) };
    let plan = case.plan::<f32>((9, 0));
    assert!(plan.splits == 3 && plan.split_keys == 96, "{plan}");
    run::<f32>(rig, &case)
}

/// Runs a call under every schedule.
fn run<T: Element>(rig: &Rig, case: &Case) -> Caught {
    let operands = Operands::<T>::random(7, case);
    let attention = Attention::new(rig, &operands);
    let expected = operands.expected(&attention.plan);
    outcome_of(rig, || {
        let outputs = attention.run()?;
        Ok((operands.fault(&expected, &outputs).is_none(), outputs.bits()))
    })
}

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "a tile of keys is multiplied before its copy is complete",
        file: PREFILL,
        scenario: AttentionMma,
        original: "copy_async_wait<0>();",
        planted: "copy_async_wait<1>();",
        build: Build::Plain,
        caught: &[By(Fault::InFlight)],
    },
    Bug {
        name: "keys are copied over queries that are still read",
        file: PREFILL,
        scenario: AttentionMma,
        original: "block.load_queries(queries);\n        sync_block();",
        planted: "block.load_queries(queries);",
        build: Build::Race,
        caught: &[By(Fault::Race), By(Fault::InFlight)],
    },
    Bug {
        name: "results are stored over values that are still read",
        file: PREFILL,
        scenario: AttentionMma,
        original: "    sync_block();\n    block.finish",
        planted: "    block.finish",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "values beyond the last token are read",
        file: PREFILL,
        scenario: AttentionCores,
        original: "begin + row < seen ? head.value(begin + row) : nullptr",
        planted: "head.value(begin + row)",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "queries see the next token",
        file: MMA,
        scenario: AttentionMma,
        original: "if (key > last)",
        planted: "if (key > last + 1)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a tile that just crosses the diagonal is not masked",
        file: MMA,
        scenario: AttentionMma,
        original: "if (mine + warp_keys - 1 > seen)",
        planted: "if (mine + warp_keys - 1 > seen + 15)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the output's sums are not rescaled when the maximum grows",
        file: MMA,
        scenario: AttentionMma,
        original: "sum[n][2 * half + 1] *= factor;",
        planted: "",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "records of queries are merged before all are there",
        file: MMA,
        scenario: AttentionMma,
        original: "    sync_block();\n    for (u32 i = threadIdx.x; i < 16 * chunks",
        planted: "    for (u32 i = threadIdx.x; i < 16 * chunks",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "results are stored before all lanes have written theirs to shared memory",
        file: MMA,
        scenario: AttentionMma,
        original: "    sync_warp();\n",
        planted: "",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "weights are read before they are written",
        file: CORES,
        scenario: AttentionCores,
        original: "    sync_warp();\n",
        planted: "",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "a warp stops before its last query's keys",
        file: CORES,
        scenario: AttentionCores,
        original: "if (first > seen + warp_queries - 1) return;",
        planted: "if (first > seen) return;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "before the first key, exponents are relative to -inf",
        file: SHARED,
        scenario: AttentionMma,
        original: "return largest == minus_infinity() ? 0.0f : largest;",
        planted: "return largest;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the sum of weights is not rescaled when the maximum grows",
        file: SHARED,
        scenario: AttentionDecode,
        original: "    sum *= factor;\n",
        planted: "",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "records are merged as if they had the same largest score",
        file: SHARED,
        scenario: AttentionDecode,
        original: "const float factor = all.softmax.weight(at(part, HEAD));",
        planted: "const float factor = 1.0f;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the check for room adds with overflow",
        file: SHARED,
        scenario: AttentionDecode,
        original: "(past <= p.capacity && p.tokens <= p.capacity - past)",
        planted: "past + p.tokens <= p.capacity",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a key is appended to a full cache",
        file: SHARED,
        scenario: AttentionDecode,
        original: "p.tokens <= p.capacity - past",
        planted: "p.tokens <= p.capacity - past + 1",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "all sequences append to the first one's cache",
        file: SHARED,
        scenario: AttentionDecode,
        original: "const u64 row = row_of(past + token);",
        planted: "const u64 row = past + token;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "keys beyond the length are read",
        file: DECODE,
        scenario: AttentionDecode,
        original: "there = j < end ? p.head_size : 0;",
        planted: "there = p.head_size;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "CTAs without a key are counted as arrived",
        file: DECODE,
        scenario: AttentionDecode,
        original: "    if (split >= parts) return;\n",
        planted: "",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "a split arrives before its threads have stored their sums",
        file: DECODE,
        scenario: AttentionDecode,
        original: "    sync_block();\n    bool last = false;",
        planted: "    bool last = false;",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "an arrival does not release the split's sums",
        file: DECODE,
        scenario: AttentionDecode,
        original: "fetch_add_acq_rel(p.arrivals",
        planted: "fetch_add_relaxed(p.arrivals",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "the arrival counter is not reset",
        file: DECODE,
        scenario: AttentionDecode,
        original: "      if (last) store_relaxed(p.arrivals + blockIdx.x, 0u);\n",
        planted: "",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "splits are merged beginning with the last to arrive",
        file: DECODE,
        scenario: AttentionDecode,
        original: "load(of_head + part * record + index)",
        planted: "load(of_head + (part + split) % parts * record + index)",
        build: Build::Plain,
        caught: &[DependsOnSchedule],
    },
    Bug {
        name: "values are as far apart as keys",
        file: SHARED,
        scenario: AttentionMma,
        original: "static_cast<const E*>(p.values) + row_of(j) * p.values_stride + column;",
        planted: "static_cast<const E*>(p.values) + row_of(j) * p.keys_stride + column;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "a tile of keys of which a query sees all but the last is not masked",
        file: MMA,
        scenario: AttentionMma,
        original: "if (mine + warp_keys - 1 > seen) mask_later_keys(score, mine);",
        planted: "if (mine + warp_keys - 1 > seen + 1) mask_later_keys(score, mine);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
];
